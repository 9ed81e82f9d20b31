"""A classifier's figures, and those on redrawn test sets, from its logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix
from headstart.evaluation.bootstrap import Groups, assign_units, replicate_figures
from headstart.targets.class_figures import classification_figures, mean_auroc, sum_by_unit
from headstart.targets.target import Figures


def redrawn_figures(logits: Matrix, labels: NDArray[np.int64], groups: Groups | None, top_k: int) -> Figures:
    units = assign_units(labels, groups)
    return replicate_figures(sum_by_unit(logits, labels, top_k, units.of_image, len(units.stratum)), units, top_k)


def figures_of(logits: Matrix, labels: NDArray[np.int64], classes: list[str], top_k: int) -> dict[str, Any]:
    sums = sum_by_unit(logits, labels, top_k, np.zeros(len(labels), np.int64), 1).sum(axis=0)
    return classification_figures(sums, mean_auroc(logits, labels), classes, top_k)
