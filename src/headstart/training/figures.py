"""What is measured on validation after each epoch, over all ranks, and which figure decides."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from headstart.targets.target import Figures, Measure, Summable, Target

HistoryRow = dict[str, Any]
"""Numbers by the names of history.csv; None for a figure that is undefined, as a correlation with a constant."""

SUMMED = "val_loss", "val_refined_loss", "val_accuracy"
"""What is always measured of a target whose measures are sums."""


class Monitor(NamedTuple):
    """The figure that says which epoch is better."""

    name: str
    higher_is_better: bool

    @property
    def mode(self) -> Literal["min", "max"]:
        """Lightning's word for it."""
        return "max" if self.higher_is_better else "min"

    def cost(self, row: HistoryRow) -> float:
        """Return the figure of a row, less being better; infinity where it is undefined."""
        figure = row[self.name]
        return math.inf if figure is None else -figure if self.higher_is_better else figure


def known_figures(target: Target) -> dict[str, Measure]:
    """Return what validation can measure, by the names of history.csv; the losses first."""
    refined = {"val_refined_loss": Measure("refined", higher_is_better=False)}
    return {
        "val_loss": Measure("validation loss", higher_is_better=False),
        **(refined if isinstance(target, Summable) else {}),
        **{f"val_{name}": measure for name, measure in target.measures.items()},
    }


def measured_figures(target: Target, monitor: str) -> dict[str, Measure]:
    """Return what validation measures: all of it, but of classes only the losses, the accuracy and the monitored."""
    known = known_figures(target)
    if not isinstance(target, Summable):
        return known
    return {name: known[name] for name in dict.fromkeys([*SUMMED, monitor])}


def defined(figures: Mapping[str, Any], names: Mapping[str, Measure]) -> HistoryRow:
    """Return the figures of these names as plain numbers, None for those that are not finite."""
    return {name: figure if math.isfinite(figure := float(figures[name])) else None for name in names}


def shown(figure: float | None) -> str:
    """Return a figure as it is logged."""
    return "undefined" if figure is None else f"{figure:.4f}"


class SummedMeasures(Metric):
    """The measures of a target that are functions of sums, by their names in history.csv."""

    total: Tensor

    def __init__(self, target: Summable, outputs: int) -> None:
        super().__init__()
        self._target = target
        empty = target.sums(np.zeros((0, outputs), np.float32), np.zeros(0, np.int64))
        self.add_state("total", torch.zeros(len(empty)), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, values: Tensor) -> None:
        """Count outputs (n, outputs) with their values (n,)."""
        sums = self._target.sums(outputs.cpu().numpy(), values.cpu().numpy())
        self.total += torch.from_numpy(sums).to(self.total)

    def compute(self) -> dict[str, float]:
        """Return the measures."""
        return _named(self._target.figures_of(self.total.cpu().double().numpy()))


class MeasuresOfAll(Metric):
    """The measures of a target that needs all outputs at once, to rank images and to fit thresholds, likewise."""

    outputs: list[Tensor]
    values: list[Tensor]

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, values: Tensor) -> None:
        """Keep outputs (n, outputs) with their values (n, …)."""
        self.outputs.append(outputs)
        self.values.append(values)

    def compute(self) -> dict[str, float]:
        """Return the measures, with what is fitted on the same images; no numbers where an output is none."""
        outputs, values = (dim_zero_cat(each).cpu().numpy() for each in (self.outputs, self.values))
        if not np.isfinite(outputs).all():
            return dict.fromkeys((f"val_{name}" for name in self._target.measures), math.nan)
        units = np.arange(len(outputs))
        tally = self._target.tally(outputs, values, units, self._target.fit(outputs, values))
        return _named(tally.figures(np.ones((1, len(units)), np.float32)))


def _named(figures: Figures) -> dict[str, float]:
    return {f"val_{name}": float(figure[0]) for name, figure in figures.items()}
