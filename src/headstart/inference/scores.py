"""How far an image is from those of training, which evaluation and predict share; numpy alone."""

import numpy as np
from numpy.typing import NDArray

NEIGHBOUR = 10
"""The distance of an image is that to this nearest of the training images."""


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
