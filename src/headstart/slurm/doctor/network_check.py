"""What the doctor runs on each task of an allocation, started by srun; it prints its reports, one JSON object a line.

The ranks connect by plain sockets first, so that a slow import of torch is not mistaken for a missing rank.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headstart.core.errors import first_line
from headstart.slurm.doctor.batch_checks import Finding

CONNECT_TIMEOUT_S = 20
COLLECTIVE_TIMEOUT_S = 60
MEGABYTES = 64


def main(plan: dict[str, Any]) -> None:
    """Carry out the plan of ``headstart.slurm.doctor.allocation_checks``."""
    rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    _report(started=True)
    if os.environ["SLURM_LOCALID"] == "0":
        for finding in (*_check_host_names(plan["hosts"]), *_check_folders(plan["folders"], plan["token"])):
            _report(finding=finding)
    try:
        missing = connect_ranks(rank, world, plan["address"], plan["port"])
    except OSError as error:
        what = f"{socket.gethostname()}: port {plan['port']} can't be opened ({error}): set MASTER_PORT to a free one"
        _report(finding=Finding("error", "port-taken", what))
        return
    _report(missing=missing)
    if not missing:
        _check_torch(rank, world, plan)
    _report(done=True)


def _report(**content: Any) -> None:
    sender = {"rank": int(os.environ["SLURM_PROCID"]), "host": socket.gethostname()}
    print(json.dumps(sender | content), flush=True)


def _check_host_names(hosts: list[str]) -> Iterator[Finding]:
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            what = f"{socket.gethostname()} can't resolve {host}: have it added to /etc/hosts or DNS there"
            yield Finding("error", "host-unresolved", f"{what}, or leave the node out with #SBATCH --exclude={host}")


def _check_folders(folders: dict[str, str], token: str) -> Iterator[Finding]:
    """Check that each folder is the first node's (it has the doctor's token), can be written to, and can be locked."""
    host = socket.gethostname()
    for name, folder in folders.items():
        path = Path(folder)
        try:
            is_same = (path / "token").read_text() == token
        except OSError:
            is_same = False
        if not is_same:
            what = f"{host} does not see {path.parent} as the first node does: put {name} on a shared file system"
            yield Finding("error", "folder-not-shared", what)
            continue
        try:
            (path / host).write_text(token)
            FileLock(path / "lock").acquire(timeout=0).lock.release()
            what = f"{host} gets a lock in {path.parent} that the first node holds: mount it with locks that all nodes "
            yield Finding("error", "lock-not-shared", f"{what}share (Lustre: -o flock), or move {name}")
        except Timeout:  # as it should be: the doctor holds it
            pass
        except (OSError, NotImplementedError) as error:
            what = f"{host} can't write or lock in {path.parent} ({error}): repair that, or move {name}"
            yield Finding("error", "folder-not-writable", what)


def connect_ranks(rank: int, world: int, address: str, port: int) -> list[int]:
    """Connect every rank to rank 0; raises OSError where rank 0 can't listen at the port.

    Returns:
        On rank 0 the ranks that did not connect; on another its own rank where it can't reach rank 0, or where rank 0
        misses any; empty where all connected.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while rank and time.monotonic() < deadline:
        try:
            with socket.create_connection((address, port), timeout=deadline - time.monotonic()) as connection:
                connection.sendall(str(rank).encode())
                connection.settimeout(CONNECT_TIMEOUT_S)
                return [] if connection.recv(2) == b"go" else [rank]
        except OSError:
            time.sleep(0.1)
    if rank:
        return [rank]
    connected: dict[int, socket.socket] = {}
    with socket.create_server(("", port)) as server:
        while len(connected) < world - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(left)
                connected[int(connection.recv(16))] = connection
            except (OSError, ValueError):
                continue
        for connection in connected.values():
            with connection:
                connection.sendall(b"go" if len(connected) == world - 1 else b"no")
    return sorted(set(range(1, world)) - set(connected))


def _check_torch(rank: int, world: int, plan: dict[str, Any]) -> None:
    """Check the device and an all-reduce over all ranks, and time a training step on all ranks at once."""
    import torch  # noqa: PLC0415  (see the module's docstring)

    from headstart.config.loader import parse_params  # noqa: PLC0415
    from headstart.slurm.doctor.machine_checks import check_device, seconds_per_image, use_own_gpu  # noqa: PLC0415

    torch.set_num_threads(max(1, min(torch.get_num_threads(), int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))))
    params, host = parse_params(plan["params"]), socket.gethostname()
    use_own_gpu()
    device_findings = list(check_device(params))
    for finding in device_findings:
        _report(finding=finding._replace(message=f"{host}: {finding.message}"))
    try:
        _report(all_reduce=_time_all_reduce(rank, world, f"tcp://{plan['address']}:{plan['port']}"))
    except (RuntimeError, ValueError) as error:
        what = f"rank {rank} on {host}: {first_line(error)}: see whether GLOO_SOCKET_IFNAME or "
        _report(finding=Finding("error", "all-reduce-failed", f"{what}NCCL_SOCKET_IFNAME must name the nodes' network"))
    if not device_findings:
        _report(seconds_per_image=seconds_per_image(params))


def _time_all_reduce(rank: int, world: int, address: str) -> dict[str, Any]:
    """Sum 64 MB over all ranks by gloo, then by NCCL where all have a GPU; RuntimeError at any failure or wrong sum.

    Returns:
        ``backend``, the last one's name, and ``seconds``, the time that it took.
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=timeout)
    try:
        gpus = torch.tensor([torch.cuda.device_count()])
        dist.all_reduce(gpus, dist.ReduceOp.MIN)
        for backend in ("gloo", "nccl") if gpus.item() else ("gloo",):
            device = torch.device("cuda" if backend == "nccl" else "cpu")
            group: Any = dist.new_group(backend=backend, timeout=timeout)
            dist.all_reduce(torch.ones(1, device=device), group=group)  # connects
            tensor = torch.full((MEGABYTES * 250_000,), rank + 1.0, device=device)
            dist.barrier(group)
            start = time.perf_counter()
            dist.all_reduce(tensor, group=group)
            if not (tensor == world * (world + 1) / 2).all():  # which waits for the sum
                raise RuntimeError(f"an all-reduce by {backend} returned a wrong sum")
            seconds = time.perf_counter() - start
        return {"backend": backend, "seconds": seconds}
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
