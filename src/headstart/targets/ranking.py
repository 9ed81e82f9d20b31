"""Figures that depend on the order of images, on test sets in which each occurs any number of times.

The order is that of the scores, the same in every redrawn test set: so it is sorted once, and a redrawn set is a
weighted sum along it.
"""

import numpy as np
from numpy.typing import NDArray


class Ranking:
    """How well scores put the images with a label before those without."""

    def __init__(self, scores: NDArray[np.float64], present: NDArray[np.bool_], units: NDArray[np.int64]) -> None:
        """Sort by the scores (n,), the highest first; ``units`` (n,) are the images' columns in ``times``."""
        order = np.argsort(-scores, kind="stable")
        self._present, self._units = present[order], units[order]
        ranked = scores[order]
        # The last image of each run of equal scores: between equal ones there is no order.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])

    def figures(self, times: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the average precision and the area under the ROC curve, (test sets,); NaN where they are undefined.

        The average precision is Σ (recall's rise) · precision over the distinct scores, as scikit-learn's; the area is
        the fraction of pairs in the right order, equal scores counting half. ``times`` are float32 (test sets, units).
        """
        counts = times[:, self._units].astype(np.float64)
        hits = np.cumsum(counts * self._present, axis=1)[:, self._ends]
        totals = np.cumsum(counts, axis=1)[:, self._ends]
        if not len(self._ends) or not self._present.any():
            return np.full(len(times), np.nan), np.full(len(times), np.nan)
        rises, misses = np.diff(hits, axis=1, prepend=0), np.diff(totals - hits, axis=1, prepend=0)
        precision = np.divide(hits, totals, out=np.zeros_like(hits), where=totals > 0)
        positive, negative = hits[:, -1], totals[:, -1] - hits[:, -1]
        ordered = (misses * (hits - rises / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (rises * precision).sum(axis=1) / positive, ordered / (positive * negative)


class RankCorrelation:
    """Spearman's correlation of two series of numbers: Pearson's of their ranks, equal numbers sharing a rank."""

    def __init__(self, first: NDArray[np.float64], second: NDArray[np.float64], units: NDArray[np.int64]) -> None:
        """Sort both, float64 (n,); ``units`` (n,) are the images' columns in ``times``."""
        self._units = units
        self._sorted = [(order := np.argsort(each, kind="stable"), _runs(each[order])) for each in (first, second)]

    def figures(self, times: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the correlation, (test sets,); NaN where one of the two is constant."""
        counts = times[:, self._units].astype(np.float64)
        first, second = (self._ranks(counts, *each) for each in self._sorted)
        total = counts.sum(axis=1, keepdims=True)
        first, second = (each - (counts * each).sum(axis=1, keepdims=True) / total for each in (first, second))
        variances = (counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((counts * first * second).sum(axis=1) / np.sqrt(variances))

    @staticmethod
    def _ranks(counts: NDArray[np.float64], order: NDArray[np.int64], run: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return each image's rank: what is before its run of equal numbers, and half of the run."""
        ends = np.flatnonzero(np.append(run[1:] != run[:-1], True)[: len(run)])
        upto = np.cumsum(counts[:, order], axis=1)[:, ends]
        middle = upto - np.diff(upto, axis=1, prepend=0) / 2
        ranks = np.empty_like(counts)
        ranks[:, order] = middle[:, run]
        return ranks


def _runs(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of the run of equal ones that each of sorted numbers is in."""
    return np.cumsum(np.append(False, numbers[1:] != numbers[:-1])[: len(numbers)])
