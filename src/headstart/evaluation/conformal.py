"""Prediction sets that hold the labelled class as often as promised: split conformal prediction.

A threshold is the quantile of a score on images that the model was not trained on. Vovk et al. (2005): as long as these
and a new image are exchangeable, their order carrying no information, the new image's score is within the threshold
with at least the wanted probability, on average over all images and not for each class. Choosing λ and the epoch on the
same images weakens this a little; the coverage that results is measured on test.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.evaluation.bootstrap import exact_interval
from headstart.inference.scores import METHODS, nonconformity, threshold

COVERAGE_LEVELS = (0.9, 0.95)


def conformal(
    logits: dict[str, NDArray[np.float32]], labels: dict[str, NDArray[np.int64]], classes: list[str]
) -> list[dict[str, Any]]:
    """Compute thresholds on validation and measure their sets on test, for each method and level.

    Args:
        logits: float32 (n, classes) by split.
        labels: int64 (n,) by split.
        classes: their names.

    Returns:
        For each ``method`` and ``level``: ``threshold``, None where every set holds all classes; ``coverage``, the
        fraction of sets that hold the label, with its exact ``coverage_interval``; ``mean_size`` of the sets; the
        fraction that is ``empty``; ``sizes``, how many sets of each size; and ``per_class``.
    """
    entries = []
    for method in METHODS:
        scores = {split: nonconformity(logits[split], method) for split in ("validation", "test")}
        label_scores = scores["validation"][np.arange(len(labels["validation"])), labels["validation"]]
        for level in COVERAGE_LEVELS:
            limit = threshold(label_scores, level)
            entry = {"method": method, "level": level, "threshold": limit if math.isfinite(limit) else None}
            entries.append(entry | _measure(scores["test"] <= limit, labels["test"], classes))
    return entries


def _measure(sets: NDArray[np.bool_], labels: NDArray[np.int64], classes: list[str]) -> dict[str, Any]:
    """Return the figures of prediction sets, bool (n, classes)."""
    sizes, held = sets.sum(1), sets[np.arange(len(labels)), labels]
    by_size = np.bincount(sizes)
    return {
        "coverage": round(float(held.mean()), 6),
        "coverage_interval": exact_interval(int(held.sum()), len(held)),
        "mean_size": round(float(sizes.mean()), 4),
        "empty": round(float((sizes == 0).mean()), 6),
        "sizes": {str(size): int(by_size[size]) for size in np.flatnonzero(by_size)},
        "per_class": [
            {
                "class": name,
                "pictures": int(members.sum()),
                "coverage": round(float(held[members].mean()), 6) if members.any() else None,
                "mean_size": round(float(sizes[members].mean()), 4) if members.any() else None,
            }
            for name, members in ((name, labels == i) for i, name in enumerate(classes))
        ],
    }
