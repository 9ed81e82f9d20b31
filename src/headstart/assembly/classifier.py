"""The LightningModule: a timm backbone with timm's own head, trained on ``CE + Σ_g λ_g ‖W_g‖²``."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from headstart.assembly.data import Batch
from headstart.assembly.inference import Normalize
from headstart.ground.errors import UserError
from headstart.ground.params import Finetune
from headstart.libraries.backbone import classifier
from headstart.libraries.objective import squared_norm_penalty, warmup_cosine
from headstart.libraries.param_groups import Group

HistoryRow = dict[str, int | float]


class Classifier(LightningModule):
    """Trains all of a model, or its classifier alone on a backbone that is frozen in every respect.

    Attributes:
        model: timm's.
        history: one row an epoch, kept with the state: epoch (from 1; 0 is before training), lr of the head,
            train_loss (without the penalty), penalty, val_loss, val_accuracy, seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        finetune: Finetune,
        *,
        config: dict[str, Any],
        class_weights: NDArray[Any] | None,
        batch_size: int,
        steps_per_epoch: int,
        freeze_statistics: bool,
    ) -> None:
        """Keep what the steps need.

        Args:
            model: timm's, with as many outputs as classes.
            groups: every parameter of the model, once.
            finetune: the section of params.
            config: timm's data config, for the normalisation.
            class_weights: float32 (classes,), or None.
            batch_size: pictures an optimiser step, over all processes.
            steps_per_epoch: optimiser steps.
            freeze_statistics: whether BatchNorm's running statistics stay as they are.
        """
        super().__init__()
        self.model, self.groups, self.finetune = model, groups, finetune
        self.normalize = Normalize(config)
        self.frozen_backbone = False
        self.history: list[HistoryRow] = []
        self.penalty_in_loss = not fused(finetune)
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self._freeze_statistics = freeze_statistics
        self.register_buffer(
            "class_weights", None if class_weights is None else torch.from_numpy(class_weights), persistent=False
        )
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_accuracy = MulticlassAccuracy(classifier(model).out_features, average="micro")
        self._began = 0.0

    def freeze_backbone(self, *, frozen: bool) -> None:
        """Freeze all but the classifier, or thaw it. Before ``fit``: DDP takes only what needs a gradient then."""
        self.frozen_backbone = frozen
        self.model.requires_grad_(not frozen)
        classifier(self.model).requires_grad_(requires_grad=True)

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Set training mode, except where frozen: dropout off and statistics still."""
        super().train(mode)
        if self.frozen_backbone:
            self.model.eval()
        elif self._freeze_statistics:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  (torch's only common base)
                    module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, classes) of uint8 pixels (n, height, width, 3)."""
        logits: Tensor = self.model(self.normalize(pixels))
        return logits

    def on_train_epoch_start(self) -> None:
        """Set the modes, which validation has changed, and start the clock."""
        self.train()
        self._began = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give this rank's part of the objective, so that the average over ranks and parts is the global batch's."""
        # What draws within the step (dropout, stochastic depth) follows from (seed, epoch, batch, rank).
        entropy = np.random.SeedSequence((self.finetune.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        pixels, labels = batch
        losses = F.cross_entropy(self(pixels), labels, reduction="none", label_smoothing=self.finetune.label_smoothing)
        if self.class_weights is not None:
            losses = losses * self.get_buffer("class_weights")[labels]
        shares = self.trainer.world_size * self.finetune.accumulate
        loss = losses.sum() * (shares / self.batch_size)
        if not torch.isfinite(loss):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}, batch "
                f"{batch_idx + 1}), at learning rate {lr:.3g}: lower finetune.lr, set finetune.clip, or use 32-true"
            )
        self.train_loss.update(losses.detach())
        return loss + squared_norm_penalty(self.groups) if self.penalty_in_loss else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  (Lightning's signature)
        """Count plain cross-entropy and accuracy: neither penalty, nor smoothing, nor class weights."""
        pixels, labels = batch
        logits = self(pixels)
        self.val_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.val_accuracy.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Give the callbacks what they monitor, over all ranks."""
        for name, metric in (("val_loss", self.val_loss), ("val_accuracy", self.val_accuracy)):
            self.log(name, metric.compute(), rank_zero_only=False, sync_dist=False)
            metric.reset()

    def on_train_epoch_end(self) -> None:
        """Close the epoch's row before the state is saved."""
        metrics = self.trainer.callback_metrics
        with torch.no_grad():
            penalty = float(squared_norm_penalty(self.groups))
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
                "train_loss": float(self.train_loss.compute()),
                "penalty": penalty,
                "val_loss": float(metrics["val_loss"]),
                "val_accuracy": float(metrics["val_accuracy"]),
                "seconds": round(time.perf_counter() - self._began, 2),
            }
        )
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history, and whether the early stop has come: a stopped run that is started again stays stopped."""
        checkpoint["history"], checkpoint["stopped"] = self.history, self.trainer.should_stop

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> Any:
        """Give the optimiser, every group in it from the first step, and its schedule."""
        groups = [
            {
                "params": list(group.parameters.values()),
                "lr": group.lr,
                "weight_decay": 0.0 if self.penalty_in_loss else 2 * group.l2,
                "name": group.name,
            }
            for group in self.groups
        ]
        optimizer: torch.optim.Optimizer
        if self.finetune.optimizer == "sgd":
            momentum = self.finetune.momentum
            optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups)
        schedule = partial(
            warmup_cosine,
            warmup=round(self.finetune.warmup_epochs * self.steps_per_epoch),
            total=self.finetune.epochs * self.steps_per_epoch,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fused(finetune: Finetune) -> bool:
    """Say whether ``weight_decay = 2λ`` in the optimiser is exactly the penalty: plain SGD, not clipped.

    Clipping would bound the gradient before the decay joins it, and AdamW's decay is another thing.
    """
    return finetune.optimizer == "sgd" and finetune.clip is None
