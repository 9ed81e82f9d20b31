"""The negative log-likelihood of logits, and the temperature that minimises it (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

TEMPERATURE_RANGE = (0.05, 20.0)
BLOCK_VALUES = 2**24
"""Logits that are float64 at once."""


def negative_log_likelihood(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean of −log p of the labelled class, in nats: the cross-entropy without a penalty.

    ``logits``, float (n, classes), may be log-probabilities; ``labels`` are int64 (n,).
    """
    total, size = 0.0, max(1, BLOCK_VALUES // logits.shape[1])
    for begin in range(0, len(labels), size):
        block, own = np.asarray(logits[begin : begin + size], np.float64), labels[begin : begin + size]
        total -= float(log_softmax(block, axis=1)[np.arange(len(own)), own].sum())
    return total / len(labels)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Find the T for which softmax(logits / T) has the lowest negative log-likelihood, which is convex in 1 / T.

    The images, at least one, are not those of the model's training. T is within ``TEMPERATURE_RANGE``, and above 1 for
    an overconfident model. Where every image is classified correctly the likelihood has no maximum, since each smaller
    T is better: then it is 1, which leaves the logits as they are.
    """
    if (logits.argmax(1) == labels).all():
        return 1.0
    low, high = TEMPERATURE_RANGE
    best = minimize_scalar(
        lambda inverse: negative_log_likelihood(logits * inverse, labels), bounds=(1 / high, 1 / low), method="bounded"
    )
    return round(float(1 / best.x), 4)
