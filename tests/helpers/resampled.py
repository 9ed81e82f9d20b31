"""A classifier's figures, and those on redrawn test sets, from its logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix
from headstart.evaluation.bootstrap import Groups, assign_units, replicate_figures, sum_by_unit
from headstart.evaluation.metrics import Figures, classification_figures, mean_auroc


def redrawn_figures(logits: Matrix, labels: NDArray[np.int64], groups: Groups | None, top_k: int) -> Figures:
    units = assign_units(labels, groups)
    return replicate_figures(sum_by_unit(logits, labels, top_k, units), units, top_k)


def figures_of(logits: Matrix, labels: NDArray[np.int64], classes: list[str], top_k: int) -> dict[str, Any]:
    sums = sum_by_unit(logits, labels, top_k, assign_units(labels, None)).sum(axis=0)
    return classification_figures(sums, mean_auroc(logits, labels), classes, top_k)
