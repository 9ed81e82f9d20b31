"""How good logits are: right or not, their negative log-likelihood, the temperature for it (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from headstart.core.blocks import Matrix, row_blocks

TEMPERATURE_RANGE = (0.05, 20.0)


def correct_predictions(logits: Matrix, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each image whether the likeliest class is its label, bool (n,)."""
    return np.concatenate([logits[rows].argmax(1) == labels[rows] for rows in row_blocks(logits.shape)])


def probabilities(logits: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    """Return softmax(logits / temperature), (n, classes), in the precision of the logits."""
    return np.asarray(softmax(logits / temperature, axis=1))


def mean_log_probabilities(logits: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logarithms of the means of the probabilities of two models, float32 (n, classes)."""
    pair = log_softmax(np.stack([logits, others]), axis=2)
    return np.asarray(logsumexp(pair, axis=0) - np.float32(np.log(2)), np.float32)


def negative_log_likelihood(logits: Matrix, labels: NDArray[np.int64], inverse_temperature: float = 1.0) -> float:
    """Return the mean of −log p of the labelled class, in nats: the cross-entropy without a penalty.

    ``logits``, float (n, classes), may be log-probabilities; ``labels`` are int64 (n,).
    """
    total = 0.0
    for rows in row_blocks(logits.shape):
        log_probabilities = log_softmax(np.asarray(logits[rows] * inverse_temperature, np.float64), axis=1)
        total -= log_probabilities[np.arange(len(log_probabilities)), labels[rows]].sum()
    return float(total / len(labels))


def fit_temperature(logits: Matrix, labels: NDArray[np.int64]) -> float:
    """Find the T for which softmax(logits / T) has the lowest negative log-likelihood, which is convex in 1 / T.

    The images, at least one, are not those of the model's training. T is within ``TEMPERATURE_RANGE``, and above 1 for
    an overconfident model. Where every image is classified correctly the likelihood has no maximum, since each smaller
    T is better: then it is 1, which leaves the logits as they are.
    """
    if correct_predictions(logits, labels).all():
        return 1.0
    low, high = TEMPERATURE_RANGE
    best = minimize_scalar(
        lambda inverse: negative_log_likelihood(logits, labels, inverse), bounds=(1 / high, 1 / low), method="bounded"
    )
    return round(float(1 / best.x), 4)
