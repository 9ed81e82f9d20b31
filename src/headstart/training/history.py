"""The bookkeeping of a training: a row for each epoch, the ledger's rows, a curve over steps, and the epoch under way.

All of it is saved in checkpoints, so that an interrupted epoch is resumed with what it has counted.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from headstart.training.figures import HistoryRow
from headstart.training.phases import TrainingPlan
from headstart.training.regularization.ledger import LedgerRow, RegularizationLedger
from headstart.training.regularization.param_groups import Group

CURVE_POINTS = 100
"""Rows of an epoch's curve, at most: a row is the mean over as few steps as that takes."""
ADAM_BETA_1 = 0.9  # torch's default, which make_optimizer keeps


class TrainingHistory:
    """Rows of the epochs that are over, and the losses, gradient norms and times of the one under way.

    Attributes:
        rows: one an epoch: epoch (from 1; 0 is before training), lr of the first group, train_loss (without penalty),
            penalty, the plan's ``figures`` of validation, train_seconds, seconds (with validation).
        ledger_rows: one an epoch and group.
        curve: see ``curve_rows``.
        saved_epochs: whole epochs that the last checkpoint contains.
    """

    def __init__(self, plan: TrainingPlan, *, start: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> None:
        self.rows, self.ledger_rows, self.curve = list[HistoryRow](), list[LedgerRow](), list[HistoryRow]()
        self.saved_epochs = 0
        self._plan, finetune = plan, plan.finetune
        self._ledger = RegularizationLedger(
            plan.groups,
            finetune.l2.kind,
            start=start,
            anchors=anchors,
            first_phase=plan.first_phase,
            momentum=finetune.momentum if finetune.optimizer == "sgd" else ADAM_BETA_1,
            nesterov=finetune.nesterov,
        )
        # Scalars stay on the device until the epoch's end: to read one is to wait for the device.
        self._losses, self._norms = list[Tensor](), list[Tensor]()
        self._started = self._trained = time.perf_counter()

    @property
    def steps(self) -> int:
        """Optimiser steps of the epoch under way."""
        return len(self._losses)

    @property
    def losses(self) -> Tensor:
        """The loss of each step of this epoch, summed over this rank's images: float (steps,)."""
        return torch.stack(self._losses) if self._losses else torch.zeros(0)

    def start_epoch(self, optimizer: Optimizer) -> None:
        """Start the clock, and note the weights."""
        self._losses, self._norms = [], []
        self._ledger.start_epoch(optimizer)
        self._started = time.perf_counter()

    def add_loss(self, loss: Tensor, *, new_step: bool) -> None:
        """Count a batch's loss, summed over its images; its step may have begun with an earlier batch."""
        if new_step:
            self._losses.append(loss)
        else:
            self._losses[-1] = self._losses[-1] + loss

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Note the norm of a step's gradient before it was clipped."""
        self._norms.append(norm)

    def end_training_steps(self) -> None:
        """Note the time before a validation begins."""
        self._trained = time.perf_counter()

    def end_epoch(
        self, epoch: int, losses: Tensor, *, phase: int, optimizer: Optimizer, validation: HistoryRow
    ) -> None:
        """Append the rows of the epoch that is over, counted from 0; ``losses`` as in ``state_dict``."""
        plan, now = self._plan, time.perf_counter()
        first_step = epoch * plan.steps_per_epoch
        factors = [plan.lr_factor(first_step + step) for step in range(plan.steps_per_epoch)]
        step_losses: list[float] = (losses / plan.batch_size).tolist()
        norms: list[float] | None = torch.stack(self._norms).tolist() if self._norms else None
        for factor, clipping in zip(factors, self._clipping(norms), strict=True):
            self._ledger.step(factor, clipping, phase, optimizer)
        train_loss = math.fsum(step_losses) / len(step_losses)
        ledger_rows = self._ledger.end_epoch(epoch + 1, train_loss, optimizer)
        self.curve.extend(curve_rows(epoch + 1, first_step, step_losses, norms, groups=plan.groups, lr_factors=factors))
        self.ledger_rows.extend(ledger_rows)
        self.rows.append(
            {
                "epoch": epoch + 1,
                "lr": optimizer.param_groups[0]["lr"],
                "train_loss": train_loss,
                "penalty": math.fsum(float(row["penalty"] or 0) for row in ledger_rows),
                **validation,
                "train_seconds": round(self._trained - self._started, 3),
                "seconds": round(now - self._started, 3),
            }
        )
        self._losses, self._norms = [], []

    def _clipping(self, norms: Sequence[float] | None) -> list[float]:
        """Return what clipping multiplied each step's gradient by, 1 where it did nothing."""
        clip = self._plan.finetune.clip
        if clip is None or norms is None:
            return [1.0] * self._plan.steps_per_epoch
        return [min(1.0, clip / max(norm, 1e-12)) for norm in norms]

    def state_dict(self, losses: Tensor) -> dict[str, Any]:
        """Return what a checkpoint contains of it; ``losses`` (steps,) are summed over the images of all ranks."""
        return {
            "history": self.rows,
            "ledger": self.ledger_rows,
            "curve": self.curve,
            "regularization": self._ledger.state_dict(mid_epoch=self.steps > 0),
            "epoch_so_far": {
                "losses": losses,
                "norms": torch.stack(self._norms) if self._norms else torch.zeros(0),
                "seconds": time.perf_counter() - self._started,
            },
        }

    def load_state_dict(self, state: dict[str, Any], *, rank: int, device: torch.device) -> None:
        """Resume from a ``state_dict``; the losses of all ranks, however many they were, become rank 0's."""
        self.rows, self.ledger_rows, self.curve = (state[name] for name in ("history", "ledger", "curve"))
        self._ledger.load_state_dict(state["regularization"], device)
        epoch = state["epoch_so_far"]
        losses = epoch["losses"] if rank == 0 else torch.zeros_like(epoch["losses"])
        self._losses, self._norms = list(losses.to(device).unbind()), list(epoch["norms"].to(device).unbind())
        self._started = time.perf_counter() - epoch["seconds"]


def curve_rows(
    epoch: int,
    first_step: int,
    losses: Sequence[float],
    norms: Sequence[float] | None,
    *,
    groups: Sequence[Group],
    lr_factors: Sequence[float],
) -> list[HistoryRow]:
    """Return rows that show how an epoch's steps went, each the mean over some steps, at most ``CURVE_POINTS`` rows.

    ``epoch`` counts from 1. ``losses`` are means over a step's images; ``norms`` are None where no gradient is clipped.
    Of several groups with one name the highest learning rate is shown.

    Returns:
        ``epoch``, ``step`` (optimiser steps taken), ``step/loss``, ``step/lr/<group>`` and ``step/gradient_norm``.
    """
    rates = {group.name: group.lr for group in sorted(groups, key=lambda group: group.lr)}
    columns = {"step/loss": losses}
    columns |= {f"step/lr/{name}": [rate * factor for factor in lr_factors] for name, rate in rates.items()}
    if norms is not None:
        columns["step/gradient_norm"] = norms
    stride = math.ceil(len(losses) / CURVE_POINTS)
    return [
        {"epoch": epoch, "step": first_step + min(start + stride, len(losses))}
        | {name: math.fsum(part := values[start : start + stride]) / len(part) for name, values in columns.items()}
        for start in range(0, len(losses), stride)
    ]
