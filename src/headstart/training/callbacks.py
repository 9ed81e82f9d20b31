"""What is done beside the steps: to report epochs, to notice a loss that is not finite, to fit into a GPU's memory."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from headstart.core.errors import UserError
from headstart.core.progress import Progress
from headstart.training.datamodule import Batch
from headstart.training.module import FineTuner, HistoryRow
from headstart.training.regularization.ledger import with_curves

logger = logging.getLogger(__name__)

LogHistory = Callable[[list[HistoryRow], list[HistoryRow]], None]
"""Gets the history that is saved, the ledger's figures in it, and the curve of the steps, which may go further."""
BATCHES_BETWEEN_CHECKS = 50


class EpochReport(Callback):
    """Shows how far an epoch is, prints each, and hands its history row over once the saved state contains it."""

    def __init__(self, log_history: LogHistory, epochs: int) -> None:
        """Keep where the rows go and how many epochs there are."""
        self._log_history, self._epochs, self._printed = log_history, epochs, 0
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Leave out what an earlier start printed."""
        assert isinstance(pl_module, FineTuner)
        self._printed = len(pl_module.history)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epochs that are over."""
        self._report(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int  # noqa: ARG002  (Lightning's)
    ) -> None:  # fmt: skip
        """Show a bar, in an epoch that is gone on with for the rest of it."""
        assert isinstance(pl_module, FineTuner)
        if trainer.is_global_zero and self._progress is None:
            left = pl_module.steps_per_epoch - batch_idx // trainer.accumulate_grad_batches
            label = f"epoch {trainer.current_epoch + 1} of {self._epochs}"
            self._progress = Progress(label, left * pl_module.batch_size)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Count the images of all ranks."""
        if self._progress is not None:
            self._progress.advance(len(batch.labels) * trainer.world_size)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Take the bar away."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last epoch."""
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FineTuner)
        if not trainer.is_global_zero:
            return
        for row in pl_module.history[self._printed :]:
            logger.info(
                "epoch %3d of %d  loss %.4f  penalty %.4f  validation %.4f  accuracy %.4f  %.1f s",
                row["epoch"],
                self._epochs,
                *(row[name] for name in ("train_loss", "penalty", "val_loss", "val_accuracy", "seconds")),
            )
        self._printed = len(pl_module.history)
        saved = pl_module.saved_epochs
        ledger = [row for row in pl_module.ledger if int(row["epoch"] or 0) <= saved]
        self._log_history(with_curves(pl_module.history[:saved], ledger), pl_module.curve)


class FiniteLoss(Callback):
    """Ends the training when a loss was not finite, before a validation, and so before a state is kept.

    It looks now and then, since to ask the device for a number is to wait for it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Begin with no bad batch; a training that has one ends."""
        self._first_bad = torch.tensor(-1, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Note the first batch whose loss is not finite; look whether there was one."""
        bad = (self._first_bad < 0) & ~torch.isfinite(outputs["loss"])
        self._first_bad = torch.where(bad, batch_idx, self._first_bad)
        if (batch_idx + 1) % BATCHES_BETWEEN_CHECKS == 0 or batch_idx + 1 == trainer.num_training_batches:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise UserError on all ranks if one has had a bad batch."""
        latest: Tensor = trainer.strategy.reduce(self._first_bad.clone(), reduce_op="max")
        first = int(latest)
        if first >= 0:
            assert isinstance(pl_module, FineTuner)
            step = first // trainer.accumulate_grad_batches
            lr = trainer.optimizers[0].param_groups[0]["initial_lr"]
            lr *= pl_module.schedule(trainer.current_epoch * pl_module.steps_per_epoch + step)
            raise UserError(
                f"the loss is not finite in epoch {trainer.current_epoch + 1}, step {step + 1}, at learning rate "
                f"{lr:.3g}: lower finetune.lr, set finetune.clip, or use 32-true"
            )


class SettledBuckets(Callback):
    """Has DDP lay its buckets of gradients out before the first step, where it would do so after it.

    In which order several ranks' numbers are summed follows from their place in a bucket, so a training that is gone
    on with would differ in the last bits from one that was not interrupted.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a forward and a backward that leave no trace."""
        wrapped = trainer.strategy.model
        if not isinstance(wrapped, DistributedDataParallel):
            return
        assert isinstance(pl_module, FineTuner)
        pl_module.eval()
        wrapped(torch.zeros(1, *pl_module.image_size, 3, dtype=torch.uint8, device=pl_module.device)).sum().backward()
        pl_module.zero_grad(set_to_none=True)
        pl_module.train()
