"""The negative log-likelihood of logits, and the temperature that minimises it (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

TEMPERATURE_RANGE = (0.05, 20.0)


def negative_log_likelihood(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean of −log p of the labelled class, in nats: the cross-entropy without a penalty.

    ``logits``, float (n, classes), may be log-probabilities; ``labels`` are int64 (n,).
    """
    log_probabilities = log_softmax(np.asarray(logits, np.float64), axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


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
