"""The loss of each image, the weights of the classes in it, and the schedule of the learning rate."""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor


def balanced_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Weigh each class by ``n / (classes · n_class)``, as scikit-learn's ``balanced``: the mean over images is 1.

    Returns:
        float32 (classes,).
    """
    counts = np.bincount(labels, minlength=classes)
    return np.asarray(len(labels) / (classes * np.maximum(counts, 1)), np.float32)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate: a line from 1/warmup up to 1, then half a cosine down to 0.

    Loshchilov and Hutter 2017, "SGDR", without restarts.

    Args:
        step: optimiser steps taken so far.
        warmup: steps of the warm-up.
        total: steps of the whole training.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def cross_entropies(
    logits: Tensor,
    labels: Tensor,
    *,
    partners: Tensor | None,
    shares: Tensor | None,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Compute each image's cross-entropy, of a mixture on both labels by their shares: (n,).

    Args:
        logits: float (n, classes).
        labels: int64 (n,).
        partners: int64 (n,), the labels of the images that are mixed in; None where nothing is mixed.
        shares: float32 (n,), the share that each image itself has; None likewise.
        class_weights: float32 (classes,), a factor on the loss of a label; None for 1.
        label_smoothing: share of the label that all classes have alike.
    """

    def of(target: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
        return losses if class_weights is None else losses * class_weights[target]

    return of(labels) if partners is None or shares is None else torch.lerp(of(partners), of(labels), shares)
