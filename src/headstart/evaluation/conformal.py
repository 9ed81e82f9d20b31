"""Sets of classes that hold the right one as often as promised: split conformal prediction.

A threshold is the quantile of a score on images that the model was not trained on. Vovk et al. (2005): as long as
those and a new image come exchangeably, their order telling nothing, the new one's score is within the threshold
with at least the asked probability, on average over all images and not for each class. Choosing λ and the epoch by
the same images bends this a little; what it comes to is measured on test.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.evaluation.bootstrap import LEVEL
from headstart.inference.scores import METHODS, nonconformity, threshold

LEVELS = (0.9, 0.95)


def conformal(
    logits: dict[str, NDArray[np.float32]], labels: dict[str, NDArray[np.int64]], classes: list[str]
) -> list[dict[str, Any]]:
    """Take thresholds from validation and measure them on test, for each method and level.

    Args:
        logits: float32 (n, classes) by split.
        labels: int64 (n,) by split.
        classes: their names.

    Returns:
        For each ``method`` and ``level``: ``threshold``, None where all classes are always in the set; ``coverage``,
        the share of sets that hold the label, with its exact ``coverage_interval``; ``mean_size`` of the sets, the
        share that is ``empty``, ``sizes`` counted; and ``per_class``.
    """
    found = []
    for method in METHODS:
        scores = {split: nonconformity(logits[split], method) for split in ("validation", "test")}
        of_label = scores["validation"][np.arange(len(labels["validation"])), labels["validation"]]
        for level in LEVELS:
            limit = threshold(of_label, level)
            about = {"method": method, "level": level, "threshold": limit if math.isfinite(limit) else None}
            found.append(about | _measured(scores["test"] <= limit, labels["test"], classes))
    return found


def _measured(sets: NDArray[np.bool_], labels: NDArray[np.int64], classes: list[str]) -> dict[str, Any]:
    sizes, held = sets.sum(1), sets[np.arange(len(labels)), labels]
    exact = binomtest(int(held.sum()), len(held)).proportion_ci(LEVEL)
    counted = np.bincount(sizes)
    return {
        "coverage": round(float(held.mean()), 6),
        "coverage_interval": [round(float(exact.low), 6), round(float(exact.high), 6)],
        "mean_size": round(float(sizes.mean()), 4),
        "empty": round(float((sizes == 0).mean()), 6),
        "sizes": {str(size): int(counted[size]) for size in np.flatnonzero(counted)},
        "per_class": [
            {
                "class": name,
                "pictures": int(own.sum()),
                "coverage": round(float(held[own].mean()), 6) if own.any() else None,
                "mean_size": round(float(sizes[own].mean()), 4) if own.any() else None,
            }
            for name, own in ((name, labels == i) for i, name in enumerate(classes))
        ],
    }
