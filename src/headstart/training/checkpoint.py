"""The folder of one fine-tuning, in which it goes on after an interruption.

It lies under ``run.cache``, not among DVC's outputs, which DVC deletes before a stage runs, and is named by a hash of
what the run depends on: other params or other images have another folder.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.lock import locked
from headstart.distributed.heartbeat import Watchdog
from headstart.distributed.process_group import ProcessGroup
from headstart.distributed.signals import SignalSync, StopFlag, StopRequested
from headstart.training.callbacks import FiniteLoss
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.module import FineTuner

CHECKPOINT_FORMAT = 5
"""Raised whenever a state of an earlier version can't be gone on from."""


@dataclass(frozen=True)
class RunDir:
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
        json.dumps({**content, "format": CHECKPOINT_FORMAT, "version": version("headstart")}, sort_keys=True).encode()
    )
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def open_run_dir(cache: Path, key: str, *, resume: bool) -> Iterator[RunDir]:
    """Lock the folder of a run; empty it first unless the run may go on.

    Raises:
        UserError: another process uses it; the message names the process.
    """
    path = cache / "runs" / key
    with locked(path, "this fine-tuning already runs"):
        if path.exists() and not resume:
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        yield RunDir(path)


logger = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Writes a state aside and onto the disk, then gives it the name of the last one, which becomes the previous."""

    def __init__(self, folder: RunDir) -> None:
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
    """Return a file a second name, in one step; where the file system has none, a copy."""
    aside = target.with_suffix(".partial")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)


def latest_checkpoint(folder: RunDir) -> Path | None:
    """Return the newest state that is whole, None where there is none; a damaged one is removed, and that is said."""
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


def load_checkpoint(path: Path) -> Any:
    """Read a state: plain values and tensors, nothing that could run; raises UserError where it is damaged."""
    if reason := _damage(path):
        raise UserError(f"{path} is damaged ({reason}): delete {path.parent}, and the training begins anew")
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")


logger = logging.getLogger(__name__)

LARGEST_SHARE = 0.01
"""Of the time that may be spent on saving."""


class CheckpointManager(Checkpoint):
    """Saves when a stop is agreed on, when the interval is over, and after epochs; keeps the best.

    Attributes:
        folder: where the states are.
        files: by which a trainer saves them.
        finite: asked before a state is saved.
        average: of the weights, which takes their place while it is validated; or None.
    """

    def __init__(
        self,
        folder: RunDir,
        finetune: FinetuneConfig,
        run: RunConfig,
        process_group: ProcessGroup,
        *,
        stop: StopFlag,
        watchdog: Watchdog,
        images: FineTuneDataModule,
        average: WeightAveraging | None,
    ) -> None:
        """Say when and where.

        Args:
            folder: of the run.
            finetune: what early stopping monitors chooses the best epoch.
            run: ``save_minutes`` is used, and is more where to save takes over a hundredth of them.
            process_group: who agrees on it.
            stop: the flag that a signal sets.
            watchdog: told of each step.
            images: the data module.
            average: see above.
        """
        self.folder, self.files, self.finite, self.average = folder, CheckpointFiles(folder), FiniteLoss(), average
        self._monitor, self._seconds = finetune.early_stopping.monitor, 60 * run.save_minutes
        self._process_group, self._stop, self._watchdog, self._images = process_group, stop, watchdog, images
        self._agreement = SignalSync(process_group, 2)
        self._best: float | None = None  # of what is monitored, less being better
        self._owed = False
        self._saved, self._cost = time.monotonic(), 0.0

    def state_dict(self) -> dict[str, Any]:
        """Keep the best figure so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self._best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Know what the state that is gone on from contains."""
        assert isinstance(pl_module, FineTuner)
        pl_module.saved_epochs = len(pl_module.history)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Agree after each optimiser step; save and stop where that is agreed on."""
        self._watchdog.beat(f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}")
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self._process_group.rank == 0 and self._is_due(self._seconds)
        if due:
            self._saved = time.monotonic()  # one announcement is enough
        number, agreed = self._agreement.exchange((self._stop.number, int(due)))
        if number or agreed:
            self._save(trainer, pl_module)
        if number:
            raise StopRequested(number, self._watchdog.saved_steps)

    def on_validation_batch_end(  # noqa: PLR0917  (Lightning's signature)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Agree too, as long as all ranks have batches; the validation begins anew after a stop."""
        self._watchdog.beat(f"validation, batch {batch_idx + 1}")
        if batch_idx >= self._images.validation_batches_of_all():
            return
        number, agreed = self._agreement.exchange((self._stop.number, 0))
        self._owed |= bool(agreed)
        if number:
            if trainer.state.fn == TrainerFn.FITTING:
                if self.average is not None:
                    self.average.on_validation_epoch_end(trainer, pl_module)  # gives the weights back
                self._save(trainer, pl_module)
            raise StopRequested(number, self._watchdog.saved_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best epoch, the last one, and any where the last save is long enough ago."""
        assert isinstance(pl_module, FineTuner)
        cost = float(pl_module.history[-1][self._monitor]) * (1 if mode_of(self._monitor) == "min" else -1)
        better = self._best is None or cost < self._best
        if better:
            self._best = math.inf if math.isnan(cost) else cost
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not (better or last or self._owed or self._process_group.broadcast_from_rank_zero(lambda: self._is_due(0))):
            return
        saved = self._save(trainer, pl_module, best=better)
        if not saved and (better or last):
            raise UserError(
                f"the state after epoch {len(pl_module.history)} can't be saved in {self.folder.path}: free some "
                "space there or set run.cache to another folder; the next start goes on from the state before"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Let the ranks part in peace."""
        if isinstance(exception, StopRequested):
            self._agreement.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Let the ranks part in peace."""
        self._agreement.close()

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._saved >= max(seconds, self._cost / LARGEST_SHARE)

    def _save(self, trainer: Trainer, pl_module: LightningModule, *, best: bool = False) -> bool:
        """Save on all ranks, unless the loss is not finite; say whether it went well."""
        assert isinstance(pl_module, FineTuner)
        self.finite.check(trainer, pl_module)
        began = time.monotonic()
        self.files.best = best
        trainer.save_checkpoint(self.folder.last)
        error = self._process_group.broadcast_from_rank_zero(lambda: self.files.error)
        self._saved, self._owed = time.monotonic(), False
        self._cost = self._saved - began
        if error is None:
            self._watchdog.saved_steps = trainer.global_step
            pl_module.saved_epochs = len(pl_module.history)
        else:
            logger.warning("the state was not saved in %s (%s); the one before stays", self.folder.path, error)
        return error is None


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Say whether less or more of a monitored figure is better."""
    return "min" if monitor.endswith("loss") else "max"
