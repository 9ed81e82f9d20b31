"""The objective of fine-tuning: ``Loss = CE + Σ_g λ_g ‖W_g‖²``; gradient of the penalty ``2 λ_g W_g``.

The sum runs over a group's elements: no mean, no ½.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.libraries.param_groups import Group


def squared_norm_penalty(groups: Sequence[Group]) -> Tensor:
    """Write the penalty out: ``Σ_g λ_g ‖W_g‖²``, a float32 scalar (float64 for float64 parameters)."""
    terms = [
        group.l2 * sum(_wide(parameter).square().sum() for parameter in group.parameters.values())
        for group in groups
        if group.l2
    ]
    return torch.as_tensor(sum(terms))


def _wide(parameter: Tensor) -> Tensor:
    """Give at least float32: a sum of squares in fewer bits loses the small ones."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def balanced_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Weigh each class by ``n / (classes · n_class)``, as scikit-learn's ``balanced``: the mean over pictures is 1.

    Returns:
        float32 (classes,).
    """
    counts = np.bincount(labels, minlength=classes)
    return np.asarray(len(labels) / (classes * np.maximum(counts, 1)), np.float32)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Give the factor on the learning rate: a line from 1/warmup up to 1, then half a cosine down to 0.

    Loshchilov and Hutter 2017, "SGDR", without restarts.

    Args:
        step: optimiser steps taken so far.
        warmup: steps of the warm-up.
        total: steps of the whole training.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
