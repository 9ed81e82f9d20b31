"""The refined loss: the validation loss that is left when the model's confidence has been put right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor
from torchmetrics import Metric

from headstart.targets.likelihood import TEMPERATURE_RANGE

TEMPERATURES: Sequence[float] = np.geomspace(*TEMPERATURE_RANGE, 65).tolist()
"""Neighbours differ by a tenth: at worst the loss is some 0.1 % above that of the best temperature between them."""


class RefinedLoss(Metric):
    """The lowest mean cross-entropy of logits / T, in nats, over the temperatures T of ``TEMPERATURES``.

    It tells how well classes are told apart, whatever the model's confidence, which a temperature puts right
    afterwards: the cross-entropy is this refinement error and a calibration error, whose rise would end a fine-tuning
    too early. Berta, Holzmüller, Jordan and Bach 2025, "Rethinking Early Stopping: Refine, Then Calibrate",
    arXiv 2501.19195.
    """

    losses: Tensor
    count: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("losses", torch.zeros(len(TEMPERATURES)), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (n, classes) with their labels, int64 (n,)."""
        logits = logits.float()
        self.losses += torch.stack([F.cross_entropy(logits / t, labels, reduction="sum") for t in TEMPERATURES])
        self.count += len(labels)

    def compute(self) -> Tensor:
        """Return the loss, a scalar."""
        return self.losses.min() / self.count
