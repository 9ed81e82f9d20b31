"""What a project's folder holds for running it, beside what DVC tracks: who works in it, why a stage stopped."""

import os
import socket
from typing import TypedDict

from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.core.paths import STOPPED

UNDER_LOCK = "HEADSTART_UNDER_LOCK"
"""Set in the environment of what works under the lock of the folder, to a token of that start of `headstart repro`."""


class Stopped(TypedDict):
    """Why a stage ended before it was done, and where the next start goes on.

    Attributes:
        stage: its name.
        reason: the signal's name, such as SIGUSR1; or ``lost``, a process that died or hung.
        progress: optimiser steps that the saved state contains.
        host: where rank 0 ran, or for ``lost`` who noticed.
        message: one line for the user.
        start: the token of the `headstart repro` that it ran under, empty where there was none: a rank that outlived
            its start can speak in the next.
    """

    stage: str
    reason: str
    progress: int
    host: str
    message: str
    start: str


def slurm_job() -> str | None:
    """Name the Slurm job that this process runs in, None outside of one; a task of an array is a job of its own."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        # SLURM_JOB_ID is the whole array's in one of its tasks.
        return "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    return os.environ.get("SLURM_JOB_ID")


def write_stopped(stage: str, reason: str, progress: int, message: str) -> None:
    """Leave the marker that ``headstart repro`` reads, since DVC makes 255 of every exit code."""
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
    """Return the marker.

    Args:
        start: the token of the only start whose marker counts; None for any.

    Returns:
        None where there is none, or none that can be read: a file server may be away for a while.
    """
    try:
        marker: Stopped = read_json(STOPPED)
    except (UserError, OSError, ValueError):
        return None
    return marker if start in (None, marker["start"]) else None


RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Of torchrun, srun, and Lightning on one machine."""


def rank_of_process() -> int:
    """Return this process's rank before it is connected, as its launcher's environment has it; 0 where it is alone."""
    return int(next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), 0))
