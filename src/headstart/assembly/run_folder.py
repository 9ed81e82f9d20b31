"""The folder of one fine-tuning, in which it goes on after an interruption.

It lies under ``run.cache``, not among DVC's outputs, which DVC deletes before a stage runs, and is named by a hash of
what the run depends on: other params or other pictures have another folder.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headstart.ground.locks import locked

STATE_FORMAT = 5
"""Raised whenever a state of an earlier version can't be gone on from."""


@dataclass(frozen=True)
class RunFolder:
    """Names of what is in it."""

    path: Path

    @property
    def last(self) -> Path:
        """The last state that was saved."""
        return self.path / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The one before it, in case that it is damaged."""
        return self.path / "previous.ckpt"

    @property
    def best(self) -> Path:
        """The state after the best epoch."""
        return self.path / "best.ckpt"

    @property
    def start(self) -> Path:
        """The figures before the first step."""
        return self.path / "start.json"

    @property
    def precision(self) -> Path:
        """The precision that ``auto`` chose."""
        return self.path / "precision.json"

    @property
    def tracking(self) -> Path:
        """The wandb run's id, and how many rows of the history were handed over."""
        return self.path / "tracking.json"


def run_key(content: dict[str, Any], files: list[Path]) -> str:
    """Hash what a run depends on: params, the bytes of small files that name its inputs, the package, the format."""
    digest = hashlib.sha256(
        json.dumps({**content, "format": STATE_FORMAT, "version": version("headstart")}, sort_keys=True).encode()
    )
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def open_run_folder(cache: Path, key: str, *, resume: bool) -> Iterator[RunFolder]:
    """Lock the folder of a run; empty it first unless the run may go on.

    Raises:
        UserError: another process uses it; the message names the process.
    """
    path = cache / "runs" / key
    with locked(path, "this fine-tuning already runs"):
        if path.exists() and not resume:
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        yield RunFolder(path)
