"""The training step: a batch from the data module becomes a loss, its gradient is clipped, the optimiser steps.

For each batch the Trainer calls ``training_step`` and backward (in which DDP averages the gradients), after the last
batch of a step ``configure_gradient_clipping``, the optimiser and the schedule, then
``CheckpointManager.on_train_batch_end``.

``datamodule.py`` makes the batch, ``trainer.py`` calls this module phase after phase, ``history.py`` records it all.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from headstart.data.loader import Normalize
from headstart.models.backbone import freeze_, get_head
from headstart.training.datamodule import Batch
from headstart.training.history import VALIDATION_FIGURES, TrainingHistory
from headstart.training.losses import cross_entropies
from headstart.training.phases import TrainingPlan
from headstart.training.refinement import RefinedLoss
from headstart.training.regularization.penalty import make_optimizer, penalty

SEEDS_AT_ONCE = 64
"""Batches whose seeds are computed together, which takes a fraction of the time: NumPy's code stays in the cache."""


class FineTuner(LightningModule):
    """Trains all parameters of a timm model, or some while the others are frozen in every respect.

    ``image_config`` is timm's data config, for the normalisation and the image size (height and width, in pixels);
    ``class_weights`` are float32 (classes,).
    """

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        *,
        image_config: dict[str, Any],
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.plan, self.normalize = model, plan, Normalize(image_config)
        _, *self.image_size = image_config["input_size"]
        self._phase = len(plan.phases) - 1
        # No buffers: an average of the weights averages buffers too, and rounds them.
        self._start = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._anchors = {name: self._start[name] for name in plan.anchored}
        self._class_weights = None if class_weights is None else torch.from_numpy(class_weights)
        self.history = TrainingHistory(plan, start=self._start, anchors=self._anchors)
        # Without their checks, each of which would wait for the device.
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_refined_loss = RefinedLoss()
        self.val_accuracy = MulticlassAccuracy(get_head(model).out_features, average="micro", validate_args=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, classes) of uint8 pixels (n, height, width, 3)."""
        logits: Tensor = self.model(self.normalize(pixels))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute this batch's part of the objective, Σ CE / batch_size, and the penalty where the loss has it."""
        self.seed_step(batch_idx)
        logits = self(batch.pixels)
        losses = cross_entropies(
            logits,
            batch.labels,
            partners=batch.partners,
            fractions=batch.fractions,
            class_weights=self._class_weights,
            label_smoothing=self.plan.finetune.label_smoothing,
        )
        loss_sum = losses.sum()
        accumulation_steps = self.trainer.accumulate_grad_batches
        self.history.add_loss(loss_sum.detach(), new_step=batch_idx % accumulation_steps == 0)
        # DDP takes the mean over the ranks and Lightning over the accumulation steps, where the sum is wanted.
        loss = loss_sum * (self.trainer.world_size * accumulation_steps / self.plan.batch_size)
        # The penalty is whole in the loss of each rank and accumulation step, so that their mean is the penalty itself.
        if self.plan.penalty_in_loss:
            loss = loss + penalty(self.plan.groups, self._anchors)
        return loss

    def seed_step(self, batch_idx: int) -> None:
        """Seed what draws within the step (dropout, stochastic depth) by (seed, epoch, batch, rank)."""
        block, i = divmod(batch_idx, SEEDS_AT_ONCE)
        seed = _block_of_seeds(self.plan.finetune.seed, self.current_epoch, block, self.global_rank)[i]
        # Not torch.manual_seed: for each kind of accelerator that is not in use it formats the call stack to keep it
        # (torch.cuda._lazy_call, torch 2.15), which at this depth takes longer than all else around the step.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002  (Lightning's signature)
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002  (Lightning's signature)
    ) -> None:
        """Clip by the norm of all gradients, and keep it."""
        if gradient_clip_val is not None:
            self.history.add_gradient_norm(nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val))

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with the regulariser where the loss has none and all groups from the first step on."""
        finetune = self.plan.finetune
        optimizer = make_optimizer(
            self.plan.groups,
            finetune.optimizer,
            finetune.l2.kind,
            clipped=finetune.clip is not None,
            momentum=finetune.momentum,
            nesterov=finetune.nesterov,
            # Under a scaler a fused optimiser unscales the gradients itself, after they would have been clipped.
            fused=self.device.type in {"cpu", "cuda"} and not (finetune.precision == "16-mixed" and finetune.clip),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.plan.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # What trains, and in which mode.

    def set_phase(self, phase: int) -> None:
        """Unfreeze this phase's parameters, freeze all others. Before ``fit``: DDP averages only what trains then."""
        self._phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.plan.phases[phase])

    def train(self, mode: bool = True) -> "FineTuner":  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Set training mode, except where frozen: there dropout is off and statistics stay."""
        super().train(mode)
        freeze_(self.model, statistics=self.plan.freeze_statistics)
        return self

    def on_fit_start(self) -> None:
        """Move the tensors that are no parameters to the device of the weights."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(self.device)
        # In place: the ledger has the same dicts.
        self._start.update({name: value.to(self.device) for name, value in self._start.items()})
        self._anchors.update({name: self._start[name] for name in self._anchors})

    def on_train_start(self) -> None:
        """Set the mode where an epoch is resumed: then none starts."""
        self.train()

    def on_train_epoch_start(self) -> None:
        """Set the mode, which validation has changed."""
        self.train()
        self.history.start_epoch(self.trainer.optimizers[0])

    # Validation, and the end of an epoch.

    def on_validation_start(self) -> None:
        """Stop the clock of the training steps."""
        self.history.end_training_steps()

    def on_validation_epoch_start(self) -> None:
        """Copy rank 0's BatchNorm statistics, which the checkpoint has, to all ranks; an average's too."""
        if self.trainer.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002  (Lightning's signature)
        """Count plain cross-entropy and accuracy: no penalty, smoothing, class weights. Return logits (n, classes)."""
        logits: Tensor = self(batch.pixels)
        self.val_loss.update(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.val_refined_loss.update(logits, batch.labels)
        self.val_accuracy.update(logits, batch.labels)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log what callbacks monitor, over all ranks."""
        for name in VALIDATION_FIGURES:
            metric = getattr(self, name)
            self.log(name, metric.compute(), rank_zero_only=False, sync_dist=False)
            metric.reset()

    def on_train_epoch_end(self) -> None:
        """Complete the history before the checkpoint is saved."""
        self.history.end_epoch(
            self.current_epoch,
            self.sum_losses(),
            phase=self._phase,
            optimizer=self.trainer.optimizers[0],
            validation={name: float(self.trainer.callback_metrics[name]) for name in VALIDATION_FIGURES},
        )

    def sum_losses(self) -> Tensor:
        """Return the loss of each step of this epoch, summed over the images of all ranks: (steps,)."""
        losses = self.history.losses.to(self.device)
        if len(losses):
            gathered: Any = self.all_gather(losses)
            losses = gathered.reshape(self.trainer.world_size, len(losses)).sum(0)
        return losses


@lru_cache(maxsize=1)
def _block_of_seeds(seed: int, epoch: int, block: int, rank: int) -> list[int]:
    """Return the seeds of a block of batches, each derived from (seed, epoch, batch, rank)."""
    batches = range(block * SEEDS_AT_ONCE, (block + 1) * SEEDS_AT_ONCE)
    return [int(np.random.SeedSequence((seed, epoch, batch, rank)).generate_state(1)[0]) for batch in batches]
