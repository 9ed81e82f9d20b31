"""What an epoch of training has counted so far, kept in a state so that an epoch can be gone on with."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric


class EpochSoFar(nn.Module):
    """Its training loss, the norms of its steps' gradients and its clock.

    Attributes:
        loss: the mean over the pictures of all ranks.
        norms: of each optimiser step's gradient, on the device until the epoch's end: to ask for a number is to wait
            for it; 0 where nothing is clipped.
    """

    def __init__(self) -> None:
        """Begin without steps."""
        super().__init__()
        # Without its check, which would wait for the device.
        self.loss = MeanMetric(nan_strategy="disable")
        self.norms: list[Tensor] = []
        self._began = self._trained = time.perf_counter()

    def begin(self) -> None:
        """Start the clock."""
        self.norms = []
        self._began = time.perf_counter()

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
        self.norms = []
        return figures

    def sums(self) -> Tensor:
        """Give this rank's part of the loss: float32 (2,), its sum and its weight."""
        return torch.stack([torch.as_tensor(self.loss.mean_value), torch.as_tensor(self.loss.weight)])

    def state(self, sums: Tensor) -> dict[str, Any]:
        """Give what a state keeps, with the ranks' ``sums`` (ranks, 2)."""
        norms = torch.stack(self.norms) if self.norms else torch.zeros(0)
        return {"sums": sums, "norms": norms, "elapsed": time.perf_counter() - self._began}

    def load(self, state: dict[str, Any], rank: int, world: int, device: torch.device) -> None:
        """Take up a state; where there were other ranks, all that they had summed is rank 0's."""
        sums = state["sums"]
        if len(sums) != world:
            sums = torch.cat([sums.sum(0, keepdim=True), sums.new_zeros(world - 1, 2)])
        self.norms = list(state["norms"].to(device).unbind())
        if self.norms:
            self.loss.update(torch.zeros(1, device=device), 0)  # the metric has been updated, in an earlier process
        self.loss.mean_value, self.loss.weight = sums[rank].to(device).unbind()
        self._began = time.perf_counter() - state["elapsed"]
