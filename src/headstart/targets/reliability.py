"""How often predictions are right that are as sure as each other: reliability diagrams (Guo et al. 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


def confidence_bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each probability's bin of ``ECE_BINS`` equally wide ones; each holds its lower end, the last both ends."""
    return np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)


class Reliability:
    """Compares confidence, the probability of what is predicted, with how often it is so, bin by bin."""

    def __init__(self) -> None:
        """Begin without predictions."""
        self._nll, self._sums = 0.0, np.zeros((3, ECE_BINS))

    def add(self, confidence: NDArray[np.float64], hits: NDArray[Any], losses: NDArray[np.float64]) -> "Reliability":
        """Add predictions, (n,) all: their probability, whether they are right, their −log p of what is."""
        bins = confidence_bins(confidence)
        self._sums += [np.bincount(bins, weights, ECE_BINS) for weights in (None, confidence, hits)]
        self._nll += losses.sum()
        return self

    def figures(self) -> dict[str, Any]:
        """Return figures of what was added, plain JSON values.

        They are ``nll``, the mean of −log p; ``ece``, the mean absolute difference of confidence and accuracy over
        ``ECE_BINS`` bins, weighted by their predictions; ``bins``, those with predictions: ``low``, ``high``,
        ``pictures`` (how many), mean ``confidence``, ``accuracy``.
        """
        (images, confident, right), n = self._sums, max(1, int(self._sums[0].sum()))
        return {
            "nll": round(float(self._nll / n), 6),
            "ece": round(float(np.abs(right - confident).sum() / n), 6),
            "bins": [
                {
                    "low": round(i / ECE_BINS, 4),
                    "high": round((i + 1) / ECE_BINS, 4),
                    "pictures": int(images[i]),
                    "confidence": round(float(confident[i] / images[i]), 6),
                    "accuracy": round(float(right[i] / images[i]), 6),
                }
                for i in np.flatnonzero(images).tolist()
            ],
        }
