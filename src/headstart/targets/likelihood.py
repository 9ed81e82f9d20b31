"""How good logits of classes are: right or not, the temperature for their likelihood (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from headstart.core.blocks import Matrix, row_blocks
from headstart.targets.target import Target, mean_loss

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


def fit_temperature(target: Target, logits: Matrix, labels: NDArray[np.int64]) -> float:
    """Find the T for which softmax(logits / T) has the lowest negative log-likelihood, which is convex in 1 / T.

    The target is one of classes. The images, at least one, are not those of the model's training. T is within
    ``TEMPERATURE_RANGE``, and above 1 for an overconfident model. Where every image is classified correctly the
    likelihood has no maximum, since each smaller T is better: then it is 1, which leaves the logits as they are.
    """
    if correct_predictions(logits, labels).all():
        return 1.0
    low, high = TEMPERATURE_RANGE
    best = minimize_scalar(
        lambda inverse: mean_loss(target, logits, labels, 1 / inverse), bounds=(1 / high, 1 / low), method="bounded"
    )
    return round(float(1 / best.x), 4)
