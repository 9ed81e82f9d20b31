"""The weights of the classes in the loss, and the schedule of the learning rate."""

import math

import numpy as np
from numpy.typing import NDArray


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
