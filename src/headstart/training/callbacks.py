"""What happens beside the steps: epochs are reported, a loss that is not finite ends the training."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from headstart.core.errors import UserError
from headstart.core.progress import Progress
from headstart.training.datamodule import Batch
from headstart.training.figures import HistoryRow
from headstart.training.module import FineTuner
from headstart.training.regularization.ledger import with_ledger

logger = logging.getLogger(__name__)

LogHistory = Callable[[list[HistoryRow], list[HistoryRow]], None]
"""Is called with the history rows that are saved, the ledger's figures in them, and the curve, which may go further."""


class EpochReport(Callback):
    """Shows a progress bar, logs each epoch, and passes its row to ``log_history`` once a checkpoint contains it."""

    def __init__(self, log_history: LogHistory, epochs: int) -> None:
        self._log_history, self._epochs, self._logged = log_history, epochs, 0
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Leave out the epochs that an earlier start has logged."""
        assert isinstance(pl_module, FineTuner)
        self._logged = len(pl_module.history.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epochs that are over."""
        assert isinstance(pl_module, FineTuner)
        if not trainer.is_global_zero:
            return
        history = pl_module.history
        for row in history.rows[self._logged :]:
            logger.info(
                "epoch %3d of %d  loss %.4f  penalty %.4f  %s  %.1f s",
                *(row["epoch"], self._epochs, row["train_loss"], row["penalty"]),
                *(pl_module.plan.told(row), row["seconds"]),
            )
        self._logged = len(history.rows)
        saved = [row for row in history.ledger_rows if int(row["epoch"] or 0) <= history.saved_epochs]
        self._log_history(with_ledger(history.rows[: history.saved_epochs], saved), history.curve)

    on_train_end = on_train_epoch_start

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int  # noqa: ARG002  (Lightning's)
    ) -> None:  # fmt: skip
        """Show a bar; for the rest of the epoch where it is resumed."""
        if trainer.is_global_zero and self._progress is None:
            assert isinstance(pl_module, FineTuner)
            steps_left = pl_module.plan.steps_per_epoch - batch_idx // trainer.accumulate_grad_batches
            label = f"epoch {trainer.current_epoch + 1} of {self._epochs}"
            self._progress = Progress(label, steps_left * pl_module.plan.batch_size)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Count the images of all ranks."""
        if self._progress is not None:
            self._progress.advance(len(batch.values) * trainer.world_size)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Remove the bar."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None


class FiniteLossCheck:
    """Ends the training when a loss was not finite. It looks now and then: to read a loss is to wait for the device."""

    BATCHES_BETWEEN_CHECKS = 50

    def __init__(self) -> None:
        self._losses, self._batches = list[Tensor](), 0

    def add(self, trainer: Trainer, loss: Tensor, batch_idx: int) -> None:
        """Note a batch's loss; check after every 50 batches, and after the epoch's last one, before its validation."""
        self._losses.append(loss)
        self._batches = batch_idx + 1
        if self._batches % self.BATCHES_BETWEEN_CHECKS == 0 or self._batches == trainer.num_training_batches:
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise UserError on all ranks if one has had a loss that is not finite since the last check."""
        if not self._losses:
            return
        finite = torch.stack(self._losses).isfinite().tolist()
        first_bad = -1 if all(finite) else self._batches - len(finite) + finite.index(False)
        self._losses = []
        on_device = torch.tensor(first_bad, device=trainer.strategy.root_device)
        batch_idx = int(trainer.strategy.reduce(on_device, reduce_op="max"))
        if batch_idx < 0:
            return
        module = trainer.lightning_module
        assert isinstance(module, FineTuner)
        step = batch_idx // trainer.accumulate_grad_batches
        lr = trainer.optimizers[0].param_groups[0]["initial_lr"]
        lr *= module.plan.lr_factor(trainer.current_epoch * module.plan.steps_per_epoch + step)
        raise UserError(
            f"the loss is not finite in epoch {trainer.current_epoch + 1}, step {step + 1}, at learning rate "
            f"{lr:.3g}: lower finetune.lr, set finetune.clip, or use 32-true"
        )


class SettledBuckets(Callback):
    """Makes DDP arrange its buckets of gradients before the first step; else it would after it.

    The order in which the ranks' gradients are summed follows from their position in a bucket, so a resumed training
    would differ in the last bits from one that was not interrupted.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a forward and a backward pass that leave no trace."""
        wrapped = trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        assert isinstance(pl_module, FineTuner)
        pl_module.eval()
        image = torch.zeros(1, *pl_module.image_size, pl_module.channels, dtype=torch.uint8, device=pl_module.device)
        wrapped(image).sum().backward()
        pl_module.zero_grad(set_to_none=True)
        pl_module.train()


class AverageFromStart(EMAWeightAveraging):
    """Averages the weights exponentially, from those that training starts from.

    Lightning's begins with the weights after the first step, Adam's noisiest, and where an epoch has two or three steps
    it has hardly left them when the epoch ends.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Count the start in; a checkpoint's average has it already."""
        average = self._average_model  # Lightning has no other access to it
        assert average is not None
        if average.n_averaged == 0:
            average.update_parameters(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Average, and keep tied rows equal to the bit."""
        super().on_train_batch_end(trainer, pl_module, *args)
        assert self._average_model is not None
        average = self._average_model.module
        assert isinstance(average, FineTuner)
        average.tie_rows()
