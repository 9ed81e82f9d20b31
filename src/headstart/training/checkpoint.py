"""Checkpoints of a fine-tuning, from which it resumes after an interruption at the very step.

They lie in a folder under ``run.cache``, not among DVC's outputs, which DVC deletes before a stage runs. The folder is
named by a hash of what the run depends on: other params or other images have another one.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError, first_line
from headstart.core.lock import locked
from headstart.core.storage import storage_errors, storage_message
from headstart.distributed.heartbeat import Watchdog
from headstart.distributed.process_group import ProcessGroup
from headstart.distributed.signals import SignalSync, StopFlag, StopRequested
from headstart.training.callbacks import FiniteLossCheck
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.figures import Monitor
from headstart.training.module import FineTuner

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 8
"""Raised whenever checkpoints of earlier versions can't be resumed from; the run then starts in another folder."""
LARGEST_FRACTION = 0.01
"""Of the time that may be spent on saving."""


class RunDir:
    """The folder of a run, and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.ckpt"
        self.previous = path / "previous.ckpt"  # the checkpoint before the last, in case that the last is damaged
        self.best = path / "best.ckpt"  # after the best epoch
        self.start = path / "start.json"  # the validation figures before the first step
        self.precision = path / "precision.json"  # that ``auto`` chose
        self.tracking = path / "tracking.json"  # the wandb run's id, and how many rows of the history it has


def run_key(content: dict[str, Any], files: list[Path], checkpoint_format: int | None = None) -> str:
    """Hash what a run depends on: params, the bytes of small files that name its inputs, the package, the format."""
    versioned = {**content, "format": checkpoint_format or CHECKPOINT_FORMAT, "version": version("headstart")}
    digest = hashlib.sha256(json.dumps(versioned, sort_keys=True).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def open_run_dir(cache: Path, key: str, *, resume: bool) -> Iterator[RunDir]:
    """Lock the folder of a run; empty it first unless the run may resume.

    Raises:
        UserError: another process uses it; the message names the process.
    """
    path = cache / "runs" / key
    with locked(path, "this fine-tuning already runs"):
        if path.exists() and not resume:
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        yield RunDir(path)


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and onto the disk, then names it the last; that becomes the previous."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self.best = False  # whether the checkpoint to be saved is the best epoch's
        self.error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Save. A failure is kept in ``error`` and not raised: the other ranks wait for this one."""
        self.error = None
        partial = Path(path).with_suffix(".partial")
        try:
            with storage_errors(partial), partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if self.best:
                # Before it becomes the last one: after a kill in between the epoch is trained again, and not forgotten.
                _link(partial, self._run_dir.best)
            if self._run_dir.last.exists():
                self._run_dir.last.replace(self._run_dir.previous)
            partial.replace(self._run_dir.last)
            _sync_folder(self._run_dir.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            partial.unlink(missing_ok=True)
            self.error = error if isinstance(error, OSError) else OSError(first_line(error))


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """Link a file to a second name, atomically; copy it where the file system has no links."""
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)


def latest_checkpoint(run_dir: RunDir) -> Path | None:
    """Return the newest checkpoint that is whole, None where there is none; remove damaged ones with a warning."""
    for path in (run_dir.last, run_dir.previous):
        if path.exists():
            damage = _damage(path)
            if damage is None:
                return path
            logger.warning("%s is damaged (%s): resuming from the checkpoint before it", path, damage)
            path.unlink()
    return None


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file, None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch's files are zip archives, with checksums
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)
    return f"the checksum of {broken}" if broken else None


def load_checkpoint(path: Path) -> Any:
    """Read a checkpoint: plain values and tensors, nothing that could run; raises UserError where it is damaged."""
    if damage := _damage(path):
        raise UserError(f"{path} is damaged ({damage}): delete {path.parent}, and the training begins anew")
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")


class CheckpointManager(Checkpoint):
    """Saves when a stop is requested, when the interval is over, and after epochs; keeps the best; resumes.

    The interval is ``run.save_minutes``, or longer where a save takes over a hundredth of it. ``monitor`` chooses the
    best epoch. ``average`` is of the weights, and takes their place while it is validated.
    """

    def __init__(
        self,
        run_dir: RunDir,
        run: RunConfig,
        process_group: ProcessGroup,
        *,
        monitor: Monitor,
        stop: StopFlag,
        watchdog: Watchdog,
        images: FineTuneDataModule,
        average: WeightAveraging | None,
    ) -> None:
        self.run_dir, self.files, self.average = run_dir, CheckpointFiles(run_dir), average
        self._monitor, self._interval = monitor, 60 * run.save_minutes
        self._process_group, self._stop, self._watchdog, self._images = process_group, stop, watchdog, images
        self._sync, self._finite = SignalSync(process_group, 2), FiniteLossCheck()
        self._best: float | None = None  # of what is monitored, less being better
        self._resumed: dict[str, Any] | None = None
        self._overdue = False  # since the interval ended within a validation
        self._saved_at, self._save_seconds = time.monotonic(), 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from it."""
        self._best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the history, and whether the training has stopped early: then it stays stopped."""
        assert isinstance(pl_module, FineTuner)
        checkpoint |= pl_module.history.state_dict(pl_module.sum_losses().cpu())
        checkpoint["stopped"] = trainer.should_stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Keep the checkpoint until the weights are on their device and the accumulation steps are known."""
        self._resumed = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the history, and the epoch at its step, with today's ranks and accumulation steps."""
        if self._resumed is None:
            return
        assert isinstance(pl_module, FineTuner)
        history, steps_per_epoch = pl_module.history, pl_module.plan.steps_per_epoch
        history.load_state_dict(self._resumed, rank=pl_module.global_rank, device=pl_module.device)
        if history.steps:
            loops, accumulation_steps = self._resumed["loops"], trainer.accumulate_grad_batches
            set_loop_position(loops, len(history.rows), history.steps, steps_per_epoch, accumulation_steps)
        self._resumed = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Note what the checkpoint contains that is resumed from."""
        assert isinstance(pl_module, FineTuner)
        pl_module.history.saved_epochs = len(pl_module.history.rows)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """After each optimiser step: agree with the other ranks whether to save or to stop, and do it."""
        self._watchdog.beat(f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}")
        self._finite.add(trainer, outputs["loss"], batch_idx)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self._process_group.rank == 0 and self._is_due(self._interval)
        if due:
            self._saved_at = time.monotonic()  # one announcement is enough
        number, save = self._sync.exchange((self._stop.number, int(due)))
        if number or save:
            self._save(trainer, pl_module)
        if number:
            raise StopRequested(number, self._watchdog.saved_steps)

    def on_validation_batch_end(  # noqa: PLR0917  (Lightning's signature)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Agree as well, while all ranks have batches; after a stop the validation begins again."""
        self._watchdog.beat(f"validation, batch {batch_idx + 1}")
        if batch_idx >= self._images.validation_batches_of_all():
            return
        number, save = self._sync.exchange((self._stop.number, 0))
        self._overdue |= bool(save)
        if number:
            if trainer.state.fn == TrainerFn.FITTING:
                if self.average is not None:
                    self.average.on_validation_epoch_end(trainer, pl_module)  # restores the weights
                self._save(trainer, pl_module)
            raise StopRequested(number, self._watchdog.saved_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best epoch, the last one, and any other where the last save is long enough ago."""
        assert isinstance(pl_module, FineTuner)
        history = pl_module.history
        cost, (name, _) = self._monitor.cost(history.rows[-1]), self._monitor
        if self._best is None and history.rows[-1][name] is None and not name.endswith("loss"):
            what = f"{name} is undefined on these validation images"
            raise UserError(f"finetune.early_stopping.monitor: {what}: use another figure, or auto")
        better = self._best is None or cost < self._best
        if better:
            self._best = cost
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = better or last or self._overdue
        if not (due or self._process_group.broadcast_from_rank_zero(lambda: self._is_due(0))):
            return
        error = self._save(trainer, pl_module, best=better)
        if error is not None and (better or last):
            raise UserError(
                f"the checkpoint after epoch {len(history.rows)} can't be saved in "
                f"{storage_message(error) or f'{self.run_dir.path}: {error}'}; run.cache can be another folder. The "
                "next start resumes from the checkpoint before"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Complete the exchange that is under way, so that the ranks can disconnect."""
        if isinstance(exception, StopRequested):
            self._sync.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Complete the exchange that is under way, so that the ranks can disconnect."""
        self._sync.close()

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._saved_at >= max(seconds, self._save_seconds / LARGEST_FRACTION)

    def _save(self, trainer: Trainer, pl_module: LightningModule, *, best: bool = False) -> OSError | None:
        """Save on all ranks, unless the loss is not finite; return why it failed, None where it did not."""
        assert isinstance(pl_module, FineTuner)
        self._finite.check(trainer)
        began = time.monotonic()
        self.files.best = best
        trainer.save_checkpoint(self.run_dir.last)
        error = self._process_group.broadcast_from_rank_zero(lambda: self.files.error)
        self._saved_at, self._overdue = time.monotonic(), False
        self._save_seconds = self._saved_at - began
        if error is None:
            self._watchdog.saved_steps = trainer.global_step
            pl_module.history.saved_epochs = len(pl_module.history.rows)
        else:
            reason = storage_message(error) or error
            logger.warning("the checkpoint was not saved in %s (%s); the one before stays", self.run_dir.path, reason)
        return error


def set_loop_position(
    loops: dict[str, Any], epoch: int, step: int, steps_per_epoch: int, accumulation_steps: int
) -> None:
    """Write the position in an epoch into a checkpoint's ``loops``, by which Lightning's loops find theirs.

    Lightning (2.6) resumes within an epoch only where it saved by itself, counts batches and not steps, and after a
    save that follows the last batch it skips the validation or takes one batch of it: upstream's issues 19764 and
    19549, both open (github.com/Lightning-AI/pytorch-lightning/issues).

    ``loops`` is changed in place. ``epoch`` counts from 0; ``step`` optimiser steps were taken in it, from 1 to
    ``steps_per_epoch``, and after the last the validation is to be done. ``accumulation_steps``, the batches a step,
    need not be as many as when the checkpoint was saved.
    """
    fit = loops["fit_loop"]
    batches, before = step * accumulation_steps, epoch * steps_per_epoch * accumulation_steps
    whole = step == steps_per_epoch
    # Within an epoch Lightning expects a batch that is not quite completed: it saves at the end of one.
    completed = batches if whole else batches - 1
    current = {"ready": batches, "started": batches, "processed": batches, "completed": completed}
    total = {name: before + count for name, count in current.items()}
    fit["epoch_loop.batch_progress"] = {"total": total, "current": current, "is_last_batch": whole}
    if whole:
        # A validation that has started with its first batch is resumed, at its first batch.
        started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        fit["epoch_loop.val_loop.batch_progress"] = {"total": started, "current": {**started}, "is_last_batch": False}
