"""Has every task of an allocation say what it sees, and names those that say nothing."""

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

from filelock import FileLock

from headstart.config.schema import Params
from headstart.core.paths import STATE, cache_folder
from headstart.distributed.process_group import SlurmTasks
from headstart.slurm.doctor.batch_checks import Resources
from headstart.slurm.doctor.finding import Finding
from headstart.slurm.doctor.network_check import MEGABYTES
from headstart.slurm.doctor.slurm_commands import answer

PROBE_S = 120
"""Most of it for torch's import by many tasks from a cold file system; ranks that are there need a few seconds."""
PARTING_S = 3
TOO_SHORT_TO_MEASURE_S = 0.02


def check_tasks(params: Params, resources: Resources, gradients: int) -> tuple[list[Finding], float | None]:
    """Start a task for each rank with srun, and see what they see.

    Args:
        params: all of them.
        resources: of the allocation.
        gradients: bytes of them, which each step sums over all tasks.

    Returns:
        The findings, and the seconds a training image of the slowest task; None where that was not measured.
    """
    token, hosts = secrets.token_hex(8), answer("scontrol", "show", "hostnames").stdout.split()
    if not hosts:
        return [Finding("error", "slurm-silent", "scontrol does not answer: see whether `scontrol ping` does")], None
    cache = cache_folder(params.run.cache).resolve()
    with _marked(STATE.resolve(), token) as ours, _marked(cache, token) as cached:
        plan = {
            "hosts": hosts,
            "address": os.environ.get("MASTER_ADDR", hosts[0]),
            "port": SlurmTasks().main_port,
            "folders": {"the project": str(ours), "run.cache": str(cached)},
            "token": token,
            "params": params.model_dump(mode="json"),
        }
        said, complaint = _started(plan)
    images = [each["picture"] for each in said if "picture" in each]
    findings = [Finding(*each["finding"]) for each in said if "finding" in each]
    if not any(finding.name in {"host-unresolved", "port-taken"} for finding in findings):
        findings += _missing(said, hosts, complaint) or _network(said, params, resources, gradients)
    return list(dict.fromkeys(findings)), max(images, default=None)


@contextmanager
def _marked(home: Path, token: str) -> Iterator[Path]:
    """Return a folder that holds a token, and a lock that this process has."""
    folder = home / f"doctor-{token}"
    folder.mkdir(parents=True)
    try:
        (folder / "token").write_text(token)
        with FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(plan: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what all tasks printed until they ended or the time was up, and srun's first complaint."""
    environment, said = dict(os.environ), []
    if "SLURM_CPUS_PER_TASK" in environment:
        environment["SRUN_CPUS_PER_TASK"] = environment["SLURM_CPUS_PER_TASK"]
    command = [
        "srun",
        "--mpi=none",
        "--kill-on-bad-exit=0",
        sys.executable,
        "-m",
        "headstart.slurm.doctor.network_check",
    ]
    with (
        TemporaryFile("w+") as errors,
        Popen([*command, json.dumps(plan)], env=environment, stdout=PIPE, stderr=errors, text=True) as srun,
    ):
        limit = Timer(PROBE_S, srun.terminate)
        limit.start()
        for line in srun.stdout or ():
            if line.startswith('{"rank"'):
                said.append(json.loads(line))
                if said[-1].get("missing"):  # nobody computes then, and who is missing may never end
                    limit.cancel()
                    limit = Timer(PARTING_S, srun.terminate)
                    limit.start()
        srun.wait()
        limit.cancel()
        errors.seek(0)
        return said, (errors.read().splitlines() or ["srun says nothing"])[0]


def _missing(said: list[dict[str, Any]], hosts: list[str], complaint: str) -> list[Finding]:
    """Name the ranks that did not start or did not come to the rendezvous; if all did, those that did not end."""
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_TASKS_PER_NODE"])
    a_node = [int(tasks) for tasks, nodes in counts for _ in range(int(nodes or 1))]
    of_rank = [host for host, tasks in zip(hosts, a_node, strict=True) for _ in range(tasks)]  # srun's order by default
    silent, stuck = (
        set(range(len(of_rank))) - {each["rank"] for each in said if key in each} for key in ("started", "done")
    )
    apart = {rank for each in said if each["rank"] == 0 for rank in each.get("missing", ())} - silent
    groups = {
        "rank-missing": (silent, f"did not start ({complaint}): look there, or leave it out with #SBATCH --exclude"),
        "rank-unreachable": (apart, f"can't reach {hosts[0]}: open its ports to the nodes, or set MASTER_ADDR"),
        "rank-lost": (set() if silent | apart else stuck, f"met the others, but did not end ({complaint})"),
    }
    findings = []
    for name, (ranks, what) in groups.items():
        for host in dict.fromkeys(of_rank[rank] for rank in sorted(ranks)):
            here = ", ".join(str(rank) for rank in sorted(ranks) if of_rank[rank] == host)
            findings.append(Finding("error", name, f"rank {here} on {host} {what}"))
    return findings


def _network(said: list[dict[str, Any]], params: Params, resources: Resources, gradients: int) -> list[Finding]:
    """Say how fast the network is; too slow is where to sum a step's gradients takes longer than to compute them."""
    sums = [each["all_reduce"] for each in said if "all_reduce" in each]
    images = [each["picture"] for each in said if "picture" in each]
    if not sums or not images:
        return []
    slowest = max(each["seconds"] for each in sums)
    summing = slowest * gradients / (MEGABYTES * 1e6)
    computing = max(images) * params.finetune.batch_size / resources.tasks
    what = (
        f"{MEGABYTES} MB are summed over {resources.tasks} tasks on {resources.nodes} nodes in {slowest:.2f} s by "
        f"{sums[0]['backend']} ({8e-3 * MEGABYTES / slowest:.1f} Gbit/s)"
    )
    if summing <= max(computing, TOO_SHORT_TO_MEASURE_S) or resources.nodes == 1:
        return [Finding("info", "network", what)]
    what += f": a step's gradients take {summing:.2f} s, and to compute them {computing:.2f} s: ask for fewer nodes, "
    what += "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to a faster network, or raise finetune.batch_size"
    return [Finding("warning", "network-slow", what)]
