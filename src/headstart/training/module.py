"""The training step: a batch from the data module becomes a loss, its gradient is clipped, the optimiser steps.

For each batch the Trainer calls ``training_step`` and backward (in which DDP averages the gradients), after the last
batch of a step ``configure_gradient_clipping``, the optimiser and the schedule, then
``CheckpointManager.on_train_batch_end``.

``datamodule.py`` makes the batch, ``trainer.py`` calls this module phase after phase, ``history.py`` records it all.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from headstart.data.loader import Normalize
from headstart.models.backbone import freeze_, get_head
from headstart.targets.target import PLAIN, LossOptions, Summable
from headstart.training.datamodule import Batch
from headstart.training.figures import MeasuresOfAll, SummedMeasures, defined
from headstart.training.history import TrainingHistory
from headstart.training.phases import TrainingPlan
from headstart.training.refinement import RefinedLoss
from headstart.training.regularization.penalty import make_optimizer, penalty

SEEDS_AT_ONCE = 64
"""Batches whose seeds are computed together, which takes a fraction of the time: NumPy's code stays in the cache."""


class FineTuner(LightningModule):
    """Trains all parameters of a timm model, or some while the others are frozen in every respect.

    ``image_config`` is timm's data config, for the normalisation and the image size (height and width, in pixels);
    ``options`` are of the training's loss, NumPy's arrays in them.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        *,
        image_config: dict[str, Any],
        options: LossOptions = PLAIN,
    ) -> None:
        super().__init__()
        self.model, self.plan, self.normalize = model, plan, Normalize(image_config)
        channels, *self.image_size = image_config["input_size"]
        self.channels = channels
        self._phase = len(plan.phases) - 1
        # No buffers: an average of the weights averages buffers too, and rounds them.
        self._start = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._anchors = {name: self._start[name] for name in plan.anchored}
        self._options = options
        self.history = TrainingHistory(plan, start=self._start, anchors=self._anchors)
        # Without their checks, each of which would wait for the device.
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_measures: Metric
        if isinstance(plan.target, Summable):
            self.val_refined_loss = RefinedLoss()
            self.val_accuracy = MulticlassAccuracy(plan.target.outputs, average="micro", validate_args=False)
            if not plan.is_additive:
                self.val_measures = SummedMeasures(plan.target, plan.target.outputs)
        else:
            self.val_measures = MeasuresOfAll(plan.target)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the target's outputs, float (n, outputs), of uint8 pixels (n, height, width, 3)."""
        outputs: Tensor = self.model(self.normalize(pixels))
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute this batch's part of the objective, Σ loss / batch_size, and the penalty where the loss has it."""
        self.seed_step(batch_idx)
        outputs = _wide(self(batch.pixels))
        losses: Tensor = self.plan.target.losses(outputs, batch.values, self._options)
        if batch.partners is not None and batch.fractions is not None:
            # Of a mixture: that of both images' values, by their fractions.
            of_partners = self.plan.target.losses(outputs, batch.partners, self._options)
            losses = torch.lerp(of_partners, losses, batch.fractions)
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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002  (Lightning's)
        """Project the gradient of tied rows onto equal ones: steps then minimise the objective over equal rows.

        After the ranks' gradients are averaged, which may round each row in another way.
        """
        if self.plan.target.tied:
            gradient = get_head(self.model).weight.grad
            assert gradient is not None
            gradient.copy_(gradient.mean(0, keepdim=True).expand_as(gradient))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and keep tied rows equal to the bit: at a tensor's ends kernels round in another way."""
        super().optimizer_step(*args, **kwargs)
        self.tie_rows()

    @torch.no_grad()
    def tie_rows(self) -> None:
        """Copy the first row of a tied head to the others."""
        if self.plan.target.tied:
            weight = get_head(self.model).weight
            weight[1:] = weight[:1]

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
        weights, shift = (
            None if each is None else torch.as_tensor(each, device=self.device)
            for each in (self._options.weights, self._options.shift)
        )
        self._options = replace(self._options, weights=weights, shift=shift)
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
        """Count the plain loss, without penalty, smoothing or weights, and the figures. Return the outputs."""
        outputs = _wide(self(batch.pixels))
        self.val_loss.update(self.plan.target.losses(outputs, batch.values))
        for metric in self._metrics[1:]:
            metric.update(outputs, batch.values)
        return outputs

    @property
    def _metrics(self) -> list[Metric]:
        return [each for each in self.children() if isinstance(each, Metric)]

    def on_validation_epoch_end(self) -> None:
        """Log what callbacks monitor, over all ranks."""
        figures: dict[str, Any] = {}
        for name, metric in self.named_children():
            if isinstance(metric, Metric):
                figure = metric.compute()
                figures = (figure if isinstance(figure, dict) else {name: figure}) | figures
                metric.reset()
        for name in self.plan.figures:
            self.log(name, figures[name], rank_zero_only=False, sync_dist=False)

    def on_train_epoch_end(self) -> None:
        """Complete the history before the checkpoint is saved."""
        self.history.end_epoch(
            self.current_epoch,
            self.sum_losses(),
            phase=self._phase,
            optimizer=self.trainer.optimizers[0],
            validation=defined(self.trainer.callback_metrics, self.plan.figures),
        )

    def sum_losses(self) -> Tensor:
        """Return the loss of each step of this epoch, summed over the images of all ranks: (steps,)."""
        losses = self.history.losses.to(self.device)
        if len(losses):
            gathered: Any = self.all_gather(losses)
            losses = gathered.reshape(self.trainer.world_size, len(losses)).sum(0)
        return losses


def _wide(outputs: Tensor) -> Tensor:
    """Convert to at least float32, in which losses are computed whatever the model's precision."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


@lru_cache(maxsize=1)
def _block_of_seeds(seed: int, epoch: int, block: int, rank: int) -> list[int]:
    """Return the seeds of a block of batches, each derived from (seed, epoch, batch, rank)."""
    batches = range(block * SEEDS_AT_ONCE, (block + 1) * SEEDS_AT_ONCE)
    return [int(np.random.SeedSequence((seed, epoch, batch, rank)).generate_state(1)[0]) for batch in batches]
