"""Lightning on torchvision's images, as its project template has it: metrics, logger and checkpoints by default.

Tuned: channels_last, torchvision's tuned loader, and none of those.
"""

import time

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.contestants import memory, plain, torchvision
from benchmarks.task import CLASSES, LR, MOMENTUM, WEIGHT_DECAY, Task


class Classifier(LightningModule):
    """A model, its loss and the template's two metrics."""

    def __init__(self, task: Task) -> None:
        """Build the model."""
        super().__init__()
        self.task = task
        self.model = plain.build(task)
        self.train_loss, self.train_accuracy = MeanMetric(), MulticlassAccuracy(CLASSES)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002  (Lightning's)
        """Return the loss."""
        inputs, labels = batch
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, labels)
        self.train_loss(loss)
        self.train_accuracy(logits.argmax(1), labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        fused = self.task.tuned or None
        return torch.optim.SGD(self.parameters(), LR, MOMENTUM, 0, WEIGHT_DECAY, nesterov=True, fused=fused)


class Bare(Classifier):
    """Without metrics."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002  (Lightning's)
        """Return the loss."""
        return F.cross_entropy(self.model(batch[0]), batch[1])


class Clock(Callback):
    """Notes images/s of every epoch."""

    def __init__(self, task: Task) -> None:
        """Have no figures yet."""
        self.task, self._began = task, 0.0
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Start."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Note."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        self.rates.append(self.task.count / (time.perf_counter() - self._began))


def train(task: Task) -> list[float]:
    """Train on the images."""
    return fit(task, torchvision.batches(task))


def train_in_memory(task: Task) -> list[float]:
    """Train on one batch that is in memory, for the loop's own cost."""
    return fit(task, memory.OneBatch(task))


def fit(task: Task, batches: plain.Batches) -> list[float]:
    """Train on any batches; return images/s of each epoch."""
    clock = Clock(task)
    trainer = Trainer(
        accelerator="gpu" if task.device == "cuda" else "cpu",
        devices=1,
        max_epochs=task.epochs,
        precision=task.precision,  # type: ignore[arg-type]
        callbacks=[clock],
        default_root_dir=f"{task.work}/lightning",
        logger=not task.tuned,
        enable_checkpointing=not task.tuned,
        enable_progress_bar=not task.tuned,
        enable_model_summary=not task.tuned,
    )
    trainer.fit((Bare if task.tuned else Classifier)(task), batches)
    return clock.rates
