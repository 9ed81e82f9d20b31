"""What a project's folder holds for running it, beside what DVC tracks: who works in it, why a stage stopped."""

import socket
from pathlib import Path
from typing import TypedDict

from headstart.ground.artifacts import read_json, write_json

FOLDER = Path(".headstart")
STOPPED = FOLDER / "stopped.json"
RANKS = FOLDER / "ranks"
"""Where the processes of a stage say that they live."""
BATCH_SIGN = RANKS / "batch.json"
"""Where ``headstart repro`` does."""


class Stopped(TypedDict):
    """Why a stage ended before it was done, and where the next start goes on.

    Attributes:
        stage: its name.
        reason: the signal's name, such as SIGUSR1; or ``lost``, a process that died or hung.
        progress: optimiser steps that the saved state contains.
        host: where rank 0 ran, or for ``lost`` who noticed.
        message: one line for the user.
    """

    stage: str
    reason: str
    progress: int
    host: str
    message: str


def write_stopped(stage: str, reason: str, progress: int, message: str) -> None:
    """Leave the marker that ``headstart repro`` reads, since DVC makes 255 of every exit code."""
    marker: Stopped = {
        "stage": stage,
        "reason": reason,
        "progress": progress,
        "host": socket.gethostname(),
        "message": message,
    }
    write_json(STOPPED, marker)


def read_stopped() -> Stopped | None:
    """Give the marker, None where there is none."""
    if not STOPPED.exists():
        return None
    marker: Stopped = read_json(STOPPED)
    return marker
