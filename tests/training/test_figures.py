"""What validation measures: the figures of all images, whoever had them, and their direction."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import Metric

from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import Summable, Target
from headstart.training.figures import MeasuresOfAll, Monitor, SummedMeasures, defined, known_figures, measured_figures

GENERATOR = np.random.default_rng(0)
IMAGES = 41
TARGETS: dict[str, tuple[Target, np.ndarray]] = {
    "class": (Classes([*"abcd"]), GENERATOR.integers(0, 4, IMAGES)),
    "labels": (Labels([*"abc"]), GENERATOR.choice([0.0, 0.0, 1.0, math.nan], (IMAGES, 3))),
    "number": (Numbers(["x", "y"], ["", ""], [1.0, 2.0], [3.0, 4.0]), GENERATOR.normal(size=(IMAGES, 2))),
    "grade": (Grades([*"abcd"]), GENERATOR.integers(0, 4, IMAGES)),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_parts_of_several_ranks_give_the_figures_of_all(kind: str) -> None:
    target, values = TARGETS[kind]
    values = values if values.dtype == np.int64 else values.astype(np.float32)
    outputs = GENERATOR.normal(size=(IMAGES, target.outputs)).astype(np.float32)
    fitted = target.fit(outputs, values)
    tally = target.tally(outputs, values, np.arange(IMAGES), fitted)
    expected = {f"val_{name}": float(each[0]) for name, each in tally.figures(np.ones((1, IMAGES), np.float32)).items()}

    def metric() -> Metric:
        return SummedMeasures(target, target.outputs) if isinstance(target, Summable) else MeasuresOfAll(target)

    ranks = [metric() for _ in range(3)]
    for rank, each in enumerate(ranks):
        for part in np.array_split(np.arange(rank, IMAGES, 3), 4):
            each.update(torch.from_numpy(outputs[part]), torch.from_numpy(values[part]))
    # As torchmetrics does it: the states of all ranks, gathered and reduced.
    whole = metric()
    for name in whole._defaults:  # noqa: SLF001  (without processes)
        states: list[Any] = [getattr(each, name) for each in ranks]
        setattr(whole, name, [*itertools.chain(*states)] if isinstance(states[0], list) else torch.stack(states).sum(0))
    whole._update_count = 1  # noqa: SLF001  (it warns where it was never updated)
    found = whole.compute()
    measured = {name: found[name] for name in measured_figures(target, "val_macro_f1") if name in expected}
    assert len(measured) >= 2
    for name, figure in measured.items():
        assert figure == pytest.approx(expected[name], rel=1e-5), name


def test_the_directions_are_the_measures() -> None:
    rows = [{"val_loss": 0.5, "val_kappa": 0.5, "val_mae": 0.5}, {"val_loss": 0.7, "val_kappa": 0.7, "val_mae": 0.7}]
    known = known_figures(Grades([*"abc"]))
    better = {}
    for name in rows[0]:
        monitor = Monitor(name, known[name].higher_is_better)
        better[name] = min(rows, key=monitor.cost)[name]
        assert monitor.mode == ("max" if better[name] == 0.7 else "min")
        assert monitor.cost({name: None}) == math.inf
    assert better == {"val_loss": 0.5, "val_kappa": 0.7, "val_mae": 0.5}


def test_of_classes_only_what_is_monitored_joins_the_usual_figures() -> None:
    target = Classes([*"abc"])
    usual = ["val_loss", "val_refined_loss", "val_accuracy"]
    assert [*measured_figures(target, "val_loss")] == usual
    assert [*measured_figures(target, "val_balanced_accuracy")] == [*usual, "val_balanced_accuracy"]
    assert [*measured_figures(Grades([*"abc"]), "val_loss")][:3] == ["val_loss", "val_kappa", "val_mae"]


def test_outputs_that_are_no_numbers_have_no_figures() -> None:
    metric = MeasuresOfAll(Grades([*"abc"]))
    metric.update(torch.full((3, 2), math.nan), torch.tensor([0, 1, 2]))
    figures = metric.compute()
    assert defined(figures, {"val_kappa": known_figures(Grades([*"abc"]))["val_kappa"]}) == {"val_kappa": None}
