"""What an epoch of training has counted so far, kept in a state so that an epoch can be gone on with."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from headstart.ground.finetune import Finetune
from headstart.libraries.ledger import Ledger
from headstart.libraries.param_groups import Group

POINTS = 100
"""Rows of an epoch's curve, at most: a row is the mean over as few steps as that takes."""
ADAM_BETA_1 = 0.9  # torch's own


class EpochSoFar(nn.Module):
    """Its training loss, the losses and gradients' norms of its steps, and its clock.

    Attributes:
        loss: the mean over the pictures of all ranks.
        losses: of each optimiser step, on the device: the sum over this rank's pictures.
        norms: of each optimiser step's gradient, on the device until the epoch's end: to ask for a number is to wait
            for it; 0 where nothing is clipped.
    """

    def __init__(self) -> None:
        """Begin without steps."""
        super().__init__()
        # Without its check, which would wait for the device.
        self.loss = MeanMetric(nan_strategy="disable")
        self.norms: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._began = self._trained = time.perf_counter()

    def begin(self) -> None:
        """Start the clock."""
        self.norms, self.losses = [], []
        self._began = time.perf_counter()

    def add(self, losses: Tensor, *, part: int) -> None:
        """Count a part of a step's batch: its pictures' losses."""
        self.loss.update(losses)
        if part:
            self.losses[-1] = self.losses[-1] + losses.sum()
        else:
            self.losses.append(losses.sum())

    def trained(self) -> None:
        """Stop the clock of the training alone, before a validation."""
        self._trained = time.perf_counter()

    def clipped(self, bound: float | None) -> list[float]:
        """Give what clipping has multiplied each step's gradient by, 1 where it did nothing."""
        return [min(1.0, (bound or math.inf) / max(norm, 1e-12)) for norm in torch.stack(self.norms).tolist()]

    def close(self) -> dict[str, float]:
        """Give the epoch's loss and times, over all ranks, and begin another."""
        now = time.perf_counter()
        figures = {
            "train_loss": float(self.loss.compute()),
            "train_seconds": round(self._trained - self._began, 3),
            "seconds": round(now - self._began, 3),
        }
        self.loss.reset()
        self.norms, self.losses = [], []
        return figures

    def sums(self) -> Tensor:
        """Give this rank's part of the losses, float32 (2 + steps,): the epoch's sum and weight, each step's sum."""
        return torch.stack([torch.as_tensor(each) for each in (self.loss.mean_value, self.loss.weight, *self.losses)])

    def state(self, sums: Tensor) -> dict[str, Any]:
        """Give what a state keeps, with the ranks' ``sums`` (ranks, 2 + steps)."""
        norms = torch.stack(self.norms) if self.norms else torch.zeros(0)
        elapsed = time.perf_counter() - self._began
        return {"sums": sums[:, :2], "losses": sums[:, 2:].sum(0), "norms": norms, "elapsed": elapsed}

    def load(self, state: dict[str, Any], rank: int, world: int, device: torch.device) -> None:
        """Take up a state; where there were other ranks, all that they had summed is rank 0's."""
        sums = state["sums"]
        if len(sums) != world:
            sums = torch.cat([sums.sum(0, keepdim=True), sums.new_zeros(world - 1, 2)])
        self.norms = list(state["norms"].to(device).unbind())
        self.losses = list((state["losses"] if rank == 0 else torch.zeros_like(state["losses"])).to(device).unbind())
        if self.norms:
            self.loss.update(torch.zeros(1, device=device), 0)  # the metric has been updated, in an earlier process
        self.loss.mean_value, self.loss.weight = sums[rank].to(device).unbind()
        self._began = time.perf_counter() - state["elapsed"]


def curve(
    epoch: int,
    first: int,
    losses: Sequence[float],
    norms: Sequence[float] | None,
    *,
    groups: Sequence[Group],
    factors: Sequence[float],
) -> list[dict[str, int | float]]:
    """Give rows that show how an epoch's steps went, each the mean over some steps, at most ``POINTS`` of them.

    Args:
        epoch: from 1.
        first: optimiser steps before it.
        losses: of each step, the mean over its pictures.
        norms: of each step's gradient, None where none is clipped.
        groups: of the optimiser; of several with one name the highest learning rate is shown.
        factors: on each group's learning rate, of each step.

    Returns:
        ``epoch``, ``step`` (optimiser steps taken), ``step/loss``, ``step/lr/<group>`` and ``step/gradient_norm``.
    """
    rates = {group.name: group.lr for group in sorted(groups, key=lambda group: group.lr)}
    columns = {"step/loss": losses}
    columns |= {f"step/lr/{name}": [rate * factor for factor in factors] for name, rate in rates.items()}
    if norms is not None:
        columns["step/gradient_norm"] = norms
    some = math.ceil(len(losses) / POINTS)
    return [
        {"epoch": epoch, "step": first + min(start + some, len(losses))}
        | {name: math.fsum(part := values[start : start + some]) / len(part) for name, values in columns.items()}
        for start in range(0, len(losses), some)
    ]


def open_books(
    groups: Sequence[Group],
    finetune: Finetune,
    phases: Sequence[set[str]],
    *,
    start: dict[str, Tensor],
    anchors: dict[str, Tensor],
) -> Ledger:
    """Open the ledger of a training, with the weights that it starts from and those that ``l2_sp`` stays near."""
    return Ledger(
        groups,
        finetune.l2.kind,
        start=start,
        anchors=anchors,
        first_phase={name: i for i, names in reversed(list(enumerate(phases))) for name in names},
        momentum=finetune.momentum if finetune.optimizer == "sgd" else ADAM_BETA_1,
        nesterov=finetune.nesterov,
    )
