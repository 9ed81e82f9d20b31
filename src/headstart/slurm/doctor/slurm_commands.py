"""Asks Slurm how it is set, what it says of a script and what a job has."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart.slurm.doctor.finding import Finding

ANSWER_S = 10


def settings() -> dict[str, str]:
    """Return Slurm's settings as `scontrol show config` names them; none where there is no Slurm."""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", answer("scontrol", "show", "config").stdout, re.MULTILINE))


def check_by_sbatch(script: Path) -> Iterator[Finding]:
    """Let sbatch itself say whether it would take the script, and which cluster has such nodes."""
    said = answer("sbatch", "--test-only", str(script))
    if said.returncode:
        what = " ".join(said.stderr.split()).removeprefix("sbatch: error: ")
        yield Finding("error", "sbatch-refuses", f"sbatch would refuse it: {what}")


def allocated(options: Mapping[str, str]) -> dict[str, str]:
    """Replace what a script asks for by what the allocation has: sbatch's own arguments win over the script."""
    names = {
        "nodes": "SLURM_JOB_NUM_NODES",
        "ntasks": "SLURM_NTASKS",
        "ntasks-per-node": "SLURM_NTASKS_PER_NODE",
        "cpus-per-task": "SLURM_CPUS_PER_TASK",
        "gpus-per-node": "SLURM_GPUS_ON_NODE",
    }
    others = {"gres", "gpus", "gpus-per-task", "requeue", "no-requeue", "time"}
    has = {option: os.environ[name] for option, name in names.items() if name in os.environ}
    job = dict(re.findall(r"(\w+)=(\S+)", answer("scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]).stdout))
    has["requeue" if job.get("Requeue") == "1" else "no-requeue"] = ""
    has["time"] = job.get("TimeLimit", "UNLIMITED")
    return {name: value for name, value in options.items() if name not in {*names, *others}} | has


def answer(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; one that isn't there, or hangs, says nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return subprocess.CompletedProcess(command, 0, "", "")
