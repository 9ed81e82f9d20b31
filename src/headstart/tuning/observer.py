"""Looks on while a try is trained: what the optimiser really got, and each validation image's part of the figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from headstart.core.io import atomic_write
from headstart.models.backbone import BATCH_NORM
from headstart.targets.likelihood import fit_temperature
from headstart.targets.target import Target
from headstart.training.module import FineTuner

LOSS_KEYS = "loss", "label_smoothing", "class_weights", "logit_adjustment", "sampling"
SCORES = ("loss", "calibrated_loss", "error")
"""What an epoch's file has of each validation image: −log p of its label; that at the temperature that fits all of
validation best; and 1 where the model is wrong, else 0. Where what is monitored is no mean over images, it has the
model's outputs."""


class Observer(Callback):
    """Notes, of a training in a single process, what was applied, and writes each epoch's scores.

    Attributes:
        applied: read from the optimiser, the layers and the plan in the first step; empty until then.
    """

    def __init__(self, folder: Path) -> None:
        self.applied: dict[str, Any] = {}
        self._folder, self._outputs, self._values = folder, list[Tensor](), list[Tensor]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Read what was applied from what trains."""
        if self.applied:
            return
        assert isinstance(pl_module, FineTuner)
        plan, optimizer = pl_module.plan, trainer.optimizers[0]
        layers = [module for module in pl_module.modules() if isinstance(module, BATCH_NORM)]
        self.applied = {
            "optimizer": type(optimizer).__name__,
            "groups": [
                {
                    "name": group["name"],
                    "lr": group["initial_lr"],
                    "weight_decay": group["weight_decay"],
                    "l2_in_loss": planned.l2 if plan.penalty_in_loss else 0.0,
                }
                for group, planned in zip(optimizer.param_groups, plan.groups, strict=True)
            ],
            "batch_norm": f"{sum(layer.training for layer in layers)} of {len(layers)} layers train",
            "clip": trainer.gradient_clip_val,
            "steps": plan.steps,
            **{name: getattr(plan.finetune, name) for name in LOSS_KEYS},
            "augment": plan.finetune.augment.model_dump(),
        }

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begin with no image."""
        self._outputs, self._values = [], []

    def on_validation_batch_end(  # noqa: PLR0917  (Lightning's signature)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Keep the outputs, which ``validation_step`` returns."""
        self._outputs.append(outputs.float().cpu())
        self._values.append(batch.values.cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scores before a checkpoint contains the epoch, so that none with a row is without."""
        assert isinstance(pl_module, FineTuner)
        before_training = trainer.state.fn == TrainerFn.VALIDATING
        epoch = 0 if before_training else len(pl_module.history.rows) + 1
        scores = torch.cat(self._outputs).numpy()
        if pl_module.plan.is_additive:
            scores = image_scores(pl_module.plan.target, scores, torch.cat(self._values).numpy())
        with atomic_write(self._folder / f"{epoch}.npy") as partial, partial.open("wb") as file:
            np.save(file, scores)


def image_scores(target: Target, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return ``SCORES`` of logits (n, classes) and labels (n,): float32 (3, n)."""
    picked = np.arange(len(labels)), labels
    temperature = fit_temperature(target, logits, labels) if np.isfinite(logits).all() else 1.0
    losses = (-log_softmax(logits / t, axis=1)[picked] for t in (1.0, temperature))
    return np.stack([*losses, logits.argmax(axis=1) != labels]).astype(np.float32)
