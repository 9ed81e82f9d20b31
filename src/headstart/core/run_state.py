"""The state of a run outside of what DVC tracks: the marker of a stage that stopped, the Slurm job, the rank."""

import os
import socket
from typing import TypedDict

from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.core.paths import STOPPED

UNDER_LOCK = "HEADSTART_UNDER_LOCK"
"""Environment variable of what `headstart repro` starts while it holds the folder's lock: the token of that start."""


class Stopped(TypedDict):
    """Why a stage ended before it was done, and where the next start resumes.

    Attributes:
        stage: the stage's name.
        reason: the signal's name, such as SIGUSR1; or ``lost`` where a process died or hung.
        progress: optimiser steps that the checkpoint contains.
        host: the host of rank 0, or for ``lost`` of the process that noticed.
        message: one line for the user.
        start: the token of the `headstart repro` that the stage ran under, empty where there was none; a rank that
            outlives its start may still write the marker during the next one.
    """

    stage: str
    reason: str
    progress: int
    host: str
    message: str
    start: str


def slurm_job() -> str | None:
    """Return the id of the Slurm job that this process runs in, None outside of one; an array's task is its own job."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        # SLURM_JOB_ID is the id of the whole array in one of its tasks.
        return "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    return os.environ.get("SLURM_JOB_ID")


def write_stopped(stage: str, reason: str, progress: int, message: str) -> None:
    """Write the marker that `headstart repro` reads, since DVC turns every exit code into 255."""
    marker: Stopped = {
        "stage": stage,
        "reason": reason,
        "progress": progress,
        "host": socket.gethostname(),
        "message": message,
        "start": os.environ.get(UNDER_LOCK, ""),
    }
    write_json(STOPPED, marker)


def read_stopped(start: str | None = None) -> Stopped | None:
    """Return the marker, or None where there is none or it can't be read: a file server may be away for a while.

    Args:
        start: the token of the only start whose marker counts; None for any.
    """
    try:
        marker: Stopped = read_json(STOPPED)
    except (UserError, OSError, ValueError):
        return None
    return marker if start in (None, marker["start"]) else None


RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Set by torchrun, srun, and Lightning on one machine."""


def rank_of_process() -> int:
    """Return this process's rank from its launcher's environment, before any connection; 0 where it is alone."""
    return int(next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), 0))
