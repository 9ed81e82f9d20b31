"""What a model is compared with: the loss of logits, written out, and the best of the answers that are all the same."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from headstart.core.blocks import Matrix
from headstart.targets.number import Numbers
from headstart.targets.target import Target, Values


def negative_log_likelihood(logits: Matrix, labels: NDArray[np.int64]) -> float:
    """Return the mean of −log p of the labelled class, of logits (n, classes)."""
    return float(-log_softmax(logits[:].astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def best_constant(target: Target, values: Values) -> NDArray[np.float64]:
    """Return the outputs (outputs,) that have the lowest loss on images where all have the same."""
    priors = target.log_priors(values)
    if priors is not None:
        return priors.astype(np.float64)
    assert isinstance(target, Numbers)
    numbers = (values - np.array(target.mean)) / np.array(target.scale)
    if target.quantiles:
        return np.asarray(np.nanquantile(numbers, target.quantiles, axis=0).T.ravel())
    return np.asarray(np.nanmean(numbers, axis=0))
