"""The files of the saved states: each whole and on the disk before it takes its name, the one before kept beside it.

The best epoch's is another name of the same file, so to keep it costs nothing.
"""

import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from headstart.assembly.run_folder import RunFolder
from headstart.ground.errors import UserError

logger = logging.getLogger(__name__)


class StateFiles(TorchCheckpointIO):
    """Writes a state aside and onto the disk, then gives it the name of the last one, which becomes the previous."""

    def __init__(self, folder: RunFolder) -> None:
        """Say where they are."""
        self._folder = folder
        self.best = False
        """Whether the state to be saved is the best epoch's."""
        self.error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Save; what fails is kept in ``error``: the other ranks wait for this one."""
        self.error = None
        aside = Path(path).with_suffix(".partial")
        try:
            with aside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if self.best:
                # Before it is the last one: a kill in between then has the epoch trained once more, and not forgotten.
                _link(aside, self._folder.best)
            if self._folder.last.exists():
                self._folder.last.replace(self._folder.previous)
            aside.replace(self._folder.last)
            _sync(self._folder.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            aside.unlink(missing_ok=True)
            self.error = error if isinstance(error, OSError) else OSError(str(error).splitlines()[0])


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in one step; where the file system has none, a copy."""
    aside = target.with_suffix(".partial")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)


def usable_state(folder: RunFolder) -> Path | None:
    """Give the newest state that is whole, None where there is none; a damaged one is removed, and that is said."""
    for path in (folder.last, folder.previous):
        if path.exists():
            if reason := _damage(path):
                logger.warning("%s is damaged (%s): going on from the state before it", path, reason)
                path.unlink()
            else:
                return path
    return None


def _damage(path: Path) -> str | None:
    """Say what is wrong with a file, None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch's files are zip archives, with checksums
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)
    return f"the checksum of {broken}" if broken else None


def load_state(path: Path) -> Any:
    """Read a state: plain values and tensors, nothing that could run; raises UserError where it is damaged."""
    if reason := _damage(path):
        raise UserError(f"{path} is damaged ({reason}): delete {path.parent}, and the training begins anew")
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")
