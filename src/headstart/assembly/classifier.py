"""The LightningModule: a timm backbone with timm's own head, trained on ``CE + Σ_g λ_g ‖W_g‖²`` phase by phase."""

import math
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
from headstart.ground.finetune import Finetune
from headstart.libraries.backbone import classifier
from headstart.libraries.ledger import Ledger, Row
from headstart.libraries.objective import warmup_cosine
from headstart.libraries.param_groups import Group
from headstart.libraries.regularisation import make_optimizer, penalty, place_of

HistoryRow = dict[str, int | float]
ADAM_BETA_1 = 0.9  # torch's own
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (torch's only common base)


class Classifier(LightningModule):
    """Trains all of a model, or some of its parameters while the rest is frozen in every respect.

    Attributes:
        model: timm's.
        phases: names of the parameters that train in each phase; the last one has all.
        history: one row an epoch, kept with the state: epoch (from 1; 0 is before training), lr of the first group,
            train_loss (without the penalty), penalty, val_loss, val_accuracy, seconds.
        ledger: one row an epoch and group, kept with the state (``libraries/ledger.py``).
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        finetune: Finetune,
        *,
        phases: Sequence[set[str]],
        anchored: set[str],
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
            phases: see above.
            anchored: names of the parameters that ``l2_sp`` keeps near their present values.
            config: timm's data config, for the normalisation.
            class_weights: float32 (classes,), or None.
            batch_size: pictures an optimiser step, over all processes.
            steps_per_epoch: optimiser steps.
            freeze_statistics: whether BatchNorm's running statistics stay as they are.
        """
        super().__init__()
        self.model, self.groups, self.finetune, self.phases = model, groups, finetune, phases
        self.normalize = Normalize(config)
        self.history: list[HistoryRow] = []
        self.ledger: list[Row] = []
        place = place_of(finetune.l2.kind, finetune.optimizer, clipped=finetune.clip is not None)
        self.penalty_in_loss = place == "loss"
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self._freeze_statistics = freeze_statistics
        self._start = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._anchors = {name: self._start[name] for name in anchored}
        self._books = self._open_books()
        warmup, total = round(finetune.warmup_epochs * steps_per_epoch), finetune.epochs * steps_per_epoch
        self._schedule = partial(warmup_cosine, warmup=warmup, total=total)
        self._phase, self._began = len(phases) - 1, 0.0
        # No buffer: an average of the weights averages buffers too, and rounds them.
        self._class_weights = None if class_weights is None else torch.from_numpy(class_weights)
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_accuracy = MulticlassAccuracy(classifier(model).out_features, average="micro")

    def _open_books(self) -> Ledger:
        finetune = self.finetune
        return Ledger(
            self.groups,
            finetune.l2.kind,
            start=self._start,
            anchors=self._anchors,
            first_phase={name: i for i, names in reversed(list(enumerate(self.phases))) for name in names},
            momentum=finetune.momentum if finetune.optimizer == "sgd" else ADAM_BETA_1,
            nesterov=finetune.nesterov,
        )

    def enter(self, phase: int) -> None:
        """Let this phase's parameters train, no others. Before ``fit``: DDP takes only what needs a gradient then."""
        self._phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.phases[phase])

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Set training mode, except where frozen: dropout off and statistics still."""
        super().train(mode)
        for module in self.model.modules():
            parameters = list(module.parameters())
            frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
            still = self._freeze_statistics and isinstance(module, BATCH_NORM)
            if frozen or still:
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, classes) of uint8 pixels (n, height, width, 3)."""
        logits: Tensor = self.model(self.normalize(pixels))
        return logits

    def on_fit_start(self) -> None:
        """Have what is no parameter where the weights are."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(self.device)
        for kept in (self._start, self._anchors):
            kept.update({name: value.to(self.device) for name, value in kept.items()})

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def on_train_epoch_start(self) -> None:
        """Set the modes, which validation has changed, and start the clock."""
        self.train()
        self._books.open_epoch(self._optimizer)
        self._began = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give this rank's part of the objective, so that the average over ranks and parts is the global batch's."""
        # What draws within the step (dropout, stochastic depth) follows from (seed, epoch, batch, rank).
        entropy = np.random.SeedSequence((self.finetune.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        pixels, labels = batch
        losses = F.cross_entropy(self(pixels), labels, reduction="none", label_smoothing=self.finetune.label_smoothing)
        if self._class_weights is not None:
            losses = losses * self._class_weights[labels]
        shares = self.trainer.world_size * self.finetune.accumulate
        loss = losses.sum() * (shares / self.batch_size)
        if not torch.isfinite(loss):
            lr = self._optimizer.param_groups[0]["lr"]
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}, batch "
                f"{batch_idx + 1}), at learning rate {lr:.3g}: lower finetune.lr, set finetune.clip, or use 32-true"
            )
        self.train_loss.update(losses.detach())
        return loss + penalty(self.groups, self._anchors) if self.penalty_in_loss else loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002  (Lightning's signature)
    ) -> None:
        """Clip by the norm, and note the step: Lightning calls this once before each, whether it clips or not."""
        clipped = 1.0
        if gradient_clip_val is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            clipped = min(1.0, gradient_clip_val / max(float(norm), 1e-12))
        self._books.step(self._schedule(self.trainer.global_step), clipped, self._phase, optimizer)

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
        loss = float(self.train_loss.compute())
        rows = self._books.close_epoch(self.current_epoch + 1, loss, self._optimizer)
        self.ledger.extend(rows)
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "lr": self._optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                "penalty": math.fsum(float(row["penalty"] or 0) for row in rows),
                "val_loss": float(metrics["val_loss"]),
                "val_accuracy": float(metrics["val_accuracy"]),
                "seconds": round(time.perf_counter() - self._began, 2),
            }
        )
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history, and whether the early stop has come: a stopped run that is started again stays stopped."""
        checkpoint["history"], checkpoint["stopped"] = self.history, self.trainer.should_stop
        checkpoint["ledger"], checkpoint["books"] = self.ledger, self._books.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history, self.ledger = checkpoint["history"], checkpoint["ledger"]
        self._books.load_state_dict(checkpoint["books"])

    def configure_optimizers(self) -> Any:
        """Give the optimiser, every group in it from the first step, and its schedule."""
        finetune = self.finetune
        optimizer = make_optimizer(
            self.groups,
            finetune.optimizer,
            finetune.l2.kind,
            clipped=finetune.clip is not None,
            momentum=finetune.momentum,
            nesterov=finetune.nesterov,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
