"""The loss of each image, class weights, and the learning rate schedule."""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor


def balanced_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Compute ``n / (classes · n_class)`` for each class, as scikit-learn's ``balanced``: the mean over images is 1."""
    counts = np.bincount(labels, minlength=classes)
    return np.asarray(len(labels) / (classes * np.maximum(counts, 1)), np.float32)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate: a linear warm-up from 1/warmup to 1, then half a cosine down to 0.

    Loshchilov and Hutter 2017, "SGDR", without restarts. ``step`` counts the optimiser steps taken so far; ``total`` is
    of the whole training, warm-up included.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def cross_entropies(
    logits: Tensor,
    labels: Tensor,
    *,
    partners: Tensor | None,
    fractions: Tensor | None,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Compute each image's cross-entropy; for a mixture, that of both labels weighted by their fractions: (n,).

    Logits are float (n, classes); labels, partners and fractions as in ``Batch``. ``class_weights`` (classes,) are
    factors on the loss of each label; ``label_smoothing`` is the fraction of it that is spread over all classes.
    """

    def losses_for(target: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
        return losses if class_weights is None else losses * class_weights[target]

    if partners is None or fractions is None:
        return losses_for(labels)
    return torch.lerp(losses_for(partners), losses_for(labels), fractions)
