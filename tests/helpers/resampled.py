"""A classifier's figures, and those on redrawn test sets, from its logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix
from headstart.evaluation.bootstrap import Groups, assign_units, replicate_figures
from headstart.targets.classes import Classes
from headstart.targets.target import Figures, Tally, rounded


def redrawn_figures(logits: Matrix, labels: NDArray[np.int64], groups: Groups | None, top_k: int) -> Figures:
    units = assign_units(labels, groups)
    return replicate_figures(tally(logits, labels, units.of_image, top_k), units)


def figures_of(logits: Matrix, labels: NDArray[np.int64], classes: list[str], top_k: int) -> dict[str, Any]:
    found = tally(logits, labels, np.zeros(len(labels), np.int64), top_k, classes)
    figures = {name: rounded(each[0]) for name, each in found.figures(np.ones((1, 1), np.float32)).items()}
    return {**figures, **found.fixed, "per_class": found.per_part()}


def tally(
    logits: Matrix, labels: NDArray[np.int64], units: NDArray[np.int64], top_k: int, classes: list[str] | None = None
) -> Tally:
    return Classes(classes or [""] * logits.shape[1], top_k).tally(logits, labels, units, {})
