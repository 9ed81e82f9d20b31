"""Whether probabilities can be believed: temperature scaling and reliability diagrams (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

SEARCHED = (0.05, 20.0)
"""Temperatures among which the best is sought."""


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Find the T for which softmax(logits / T) has the least negative log-likelihood, convex in 1 / T.

    Args:
        logits: float32 (n, classes), of images that were not trained on; n at least 1.
        labels: int64 (n,).

    Returns:
        T, above 1 for a model that is too sure, within ``SEARCHED``; 1 where every image is right, since the less T
        the better would be all that those could tell.
    """
    if (logits.argmax(1) == labels).all():
        return 1.0
    scores = logits.astype(np.float64)

    def loss(inverse: float) -> float:
        return negative_log_likelihood(log_softmax(scores * inverse, axis=1), labels)

    found = minimize_scalar(loss, bounds=(1 / SEARCHED[1], 1 / SEARCHED[0]), method="bounded")
    return round(float(1 / found.x), 4)


def negative_log_likelihood(log_probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean of −log p of the right class.

    Args:
        log_probabilities: float64 (n, classes).
        labels: int64 (n,).
    """
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())
