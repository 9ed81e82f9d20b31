"""Runs the network check on every task of an allocation, and names the ranks that do not report."""

import json
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Timer
from typing import Any

from filelock import FileLock

from headstart.config.schema import Params
from headstart.core.paths import STATE, cache_folder
from headstart.distributed.launch import SlurmTasks
from headstart.slurm.doctor.batch_checks import Finding, Resources, run_slurm
from headstart.slurm.doctor.network_check import MEGABYTES

CHECK_TIMEOUT_S = 120
"""Mostly for torch's import by many tasks from a cold file system; the check itself takes a few seconds."""
EXIT_TIMEOUT_S = 3
TOO_SHORT_TO_MEASURE_S = 0.02


def check_allocation(params: Params, resources: Resources, gradient_bytes: int) -> tuple[list[Finding], float | None]:
    """Start one task per rank with srun; each training step sums ``gradient_bytes`` over all tasks.

    Returns:
        The findings, and the seconds per training image of the slowest task; None where that was not measured.
    """
    token, hosts = secrets.token_hex(8), run_slurm("scontrol", "show", "hostnames").stdout.split()
    if not hosts:
        return [Finding("error", "slurm-silent", "scontrol does not answer: see whether `scontrol ping` does")], None
    cache = cache_folder(params.run.cache).resolve()
    with _locked_folder(STATE.resolve(), token) as state, _locked_folder(cache, token) as cached:
        plan = {
            "hosts": hosts,
            "address": os.environ.get("MASTER_ADDR", hosts[0]),
            "port": SlurmTasks().main_port,
            "folders": {"the project": state, "run.cache": cached},
            "token": token,
            "params": params.model_dump(mode="json"),
        }
        reports, srun_error = _run_on_all_tasks(plan)
    findings = [Finding(*each["finding"]) for each in reports if "finding" in each]
    image_seconds = max((each["seconds_per_image"] for each in reports if "seconds_per_image" in each), default=None)
    if not any(finding.name in {"host-unresolved", "port-taken"} for finding in findings):
        sums = [each["all_reduce"] for each in reports if "all_reduce" in each]
        if missing := _missing_ranks(reports, hosts, srun_error):
            findings += missing
        elif sums and image_seconds is not None:
            step = image_seconds * params.finetune.batch_size / resources.tasks
            findings.append(_network_speed(sums, resources, gradient_bytes, step))
    return list(dict.fromkeys(findings)), image_seconds


@contextmanager
def _locked_folder(parent: Path, token: str) -> Iterator[str]:
    """Make a temporary folder with a file that holds the token, and a lock that this process holds."""
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="doctor-", dir=parent, ignore_cleanup_errors=True) as folder:
        Path(folder, "token").write_text(token)
        with FileLock(Path(folder, "lock")):
            yield folder


def _run_on_all_tasks(plan: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what all tasks printed until they ended or the time was up, and srun's first error line."""
    command = ["srun", "--mpi=none", "--kill-on-bad-exit=0"]
    if "SLURM_CPUS_PER_TASK" in os.environ:
        command.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
    command += [sys.executable, "-m", "headstart.slurm.doctor.network_check", json.dumps(plan)]
    reports = []
    with TemporaryFile("w+") as errors, Popen(command, stdout=PIPE, stderr=errors, text=True) as srun:
        timer = Timer(CHECK_TIMEOUT_S, srun.terminate)
        timer.start()
        for line in srun.stdout or ():
            if line.startswith('{"rank"'):
                reports.append(json.loads(line))
                if reports[-1].get("missing"):  # then no task measures anything, and the missing one may never end
                    timer.cancel()
                    timer = Timer(EXIT_TIMEOUT_S, srun.terminate)
                    timer.start()
        srun.wait()
        timer.cancel()
        errors.seek(0)
        return reports, (errors.read().splitlines() or ["srun gives no reason"])[0]


def _missing_ranks(reports: list[dict[str, Any]], hosts: list[str], srun_error: str) -> list[Finding]:
    """Name the ranks that did not start or did not reach rank 0; if all did, those that did not finish."""
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_TASKS_PER_NODE"])
    tasks_per_node = [int(tasks) for tasks, nodes in counts for _ in range(int(nodes or 1))]
    # srun's order by default.
    host_of = [host for host, tasks in zip(hosts, tasks_per_node, strict=True) for _ in range(tasks)]
    not_started, not_done = (
        set(range(len(host_of))) - {each["rank"] for each in reports if key in each} for key in ("started", "done")
    )
    unreachable = {rank for each in reports if each["rank"] == 0 for rank in each.get("missing", ())} - not_started
    lost = set() if not_started | unreachable else not_done
    where = f"({srun_error})"
    groups = {
        "rank-missing": (not_started, f"did not start {where}: look there, or leave it out with #SBATCH --exclude"),
        "rank-unreachable": (unreachable, f"can't reach {hosts[0]}: open its ports to the nodes, or set MASTER_ADDR"),
        "rank-lost": (lost, f"connected to the others, but did not finish {where}"),
    }
    findings = []
    for name, (ranks, what) in groups.items():
        for host in dict.fromkeys(host_of[rank] for rank in sorted(ranks)):
            listed = ", ".join(str(rank) for rank in sorted(ranks) if host_of[rank] == host)
            findings.append(Finding("error", name, f"rank {listed} on {host} {what}"))
    return findings


def _network_speed(sums: list[dict[str, Any]], resources: Resources, gradient_bytes: int, computing: float) -> Finding:
    """Report the network's speed; it is too slow where a step's gradients take longer to sum than to compute."""
    slowest = max(each["seconds"] for each in sums)
    summing = slowest * gradient_bytes / (MEGABYTES * 1e6)
    what = (
        f"{MEGABYTES} MB are summed over {resources.tasks} tasks on {resources.nodes} nodes in {slowest:.2f} s by "
        f"{sums[0]['backend']} ({8e-3 * MEGABYTES / slowest:.1f} Gbit/s)"
    )
    if summing <= max(computing, TOO_SHORT_TO_MEASURE_S) or resources.nodes == 1:
        return Finding("info", "network", what)
    what += f": a step's gradients take {summing:.2f} s to sum and {computing:.2f} s to compute: ask for fewer nodes, "
    what += "set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to a faster network, or raise finetune.batch_size"
    return Finding("warning", "network-slow", what)
