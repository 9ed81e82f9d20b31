"""The scores that evaluation and predict share: of prediction sets and of out-of-distribution images; numpy alone."""

import math

import numpy as np
from numpy.typing import NDArray

NEIGHBOUR = 10
"""The distance of an image is that to this nearest of the training images."""
METHODS = ("LAC", "APS")


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities, float64 (n, classes), of logits, float32 (n, classes)."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def nonconformity(logits: NDArray[np.float32], method: str) -> NDArray[np.float64]:
    """Compute every class's nonconformity score, float64 (n, classes); the right class tends to have a low one.

    LAC (Sadinle et al. 2019) is 1 − p, whose sets are the smallest. APS (Romano et al. 2020) is the probability of all
    classes that are likelier, whose sets cover hard images better; here without its random draws, so an image has
    always the same set, never an empty one, and coverage is at least the level, maybe above it.
    """
    probabilities = softmax(logits)
    if method == "LAC":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    descending = np.take_along_axis(probabilities, order, axis=1)
    likelier: NDArray[np.float64] = np.zeros_like(probabilities)
    np.put_along_axis(likelier, order, np.cumsum(descending, axis=1) - descending, axis=1)
    return likelier


def threshold(scores: NDArray[np.float64], level: float) -> float:
    """Return the ⌈(n + 1) · level⌉-th smallest of n scores; infinity where there are too few for the level."""
    rank = math.ceil((len(scores) + 1) * level)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf


def distances(features: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each row's distance, 1 − cosine, to the tenth nearest row of the reference, float32 (n,), in [0, 2].

    Args:
        features: float32 (n, width).
        reference: features of training images, float32 (m, width), m at least 1; of fewer than ten the farthest counts.
    """
    first, second = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (features, reference)
    )
    last = min(NEIGHBOUR, len(reference)) - 1
    return np.asarray(np.partition(1 - first @ second.T, last, axis=1)[:, last], np.float32)
