"""Over 500 test sets of a population whose true figures are known: intervals hold them, equal models stay equal."""

from typing import Any

import numpy as np
import pytest

from headstart.evaluation import bootstrap
from headstart.evaluation.bootstrap import (
    LEVEL,
    Units,
    assign_units,
    interval,
    replicate_figures,
    replicate_means,
    strata_of,
)
from headstart.evaluation.significance import compare, verdict
from headstart.targets.grade import Grades
from headstart.targets.kinds import make_target
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import Target

DRAWS, IMAGES, DATA, TRUTH = 500, 120, 900, 100_000
FITTED: dict[str, Any] = {"temperature": 1.0, "temperatures": [1.0] * 3, "thresholds": [0.5, 0.4, 0.3]}
TARGETS: dict[str, Any] = {
    "labels": Labels(["a", "b", "c"]),
    "number": Numbers(["age"], ["years"], [0.0], [1.0]),
    "grade": Grades(["0", "1", "2", "3"]),
}


def drawn(target: Any, images: int, generator: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values, and the outputs of two models that are equally good: what tells them apart is noise of their own."""
    hidden = generator.normal(size=images)
    seen = hidden + generator.normal(0, 0.6, images) + generator.normal(0, 0.5, (2, images))
    if target.kind == "labels":
        limits = [0.0, 0.7, 1.2]
        values = (hidden[:, None] + generator.normal(0, 0.5, (images, 3)) > limits).astype(np.float32)
        values[generator.random(values.shape) < 0.1] = np.nan
        return values, [2 * (each[:, None] - limits) for each in seen]
    if target.kind == "number":
        return hidden[:, None].astype(np.float32), [each[:, None] for each in seen]
    values = np.clip(np.round(hidden + 1.5), 0, 3).astype(np.int64)
    return values, [2 * (each[:, None] - np.array([-1.0, 0.0, 1.0])) for each in seen]


def drawn_split(target: Any, generator: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Some images of a data set, as prepare draws a test split: of each stratum its share."""
    values, outputs = drawn(target, DATA, generator)
    by_stratum = np.argsort(strata_of(target.strata(values), DATA), kind="stable")
    rows = by_stratum[generator.integers(DATA // IMAGES) :: DATA // IMAGES]
    return values[rows], [each[rows] for each in outputs]


def units_of(target: Target, values: np.ndarray) -> Units:
    return assign_units(strata_of(target.strata(values), len(values)), None)


@pytest.mark.parametrize("kind", TARGETS)
def test_intervals_hold_the_truth_and_equal_models_are_seldom_told_apart(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(bootstrap, "REPLICATES", 100)
    target, generator = TARGETS[kind], np.random.default_rng(3)
    primary = next(iter(target.measures))
    values, (outputs, _) = drawn(target, TRUTH, generator)
    truth = {
        name: float(each[0])
        for name, each in target.tally(outputs, values, np.arange(TRUTH), FITTED)
        .figures(np.ones((1, TRUTH), np.float32))
        .items()
    }
    held: dict[str, list[bool]] = {name: [] for name in truth}
    alarms, signs = [], []
    for _ in range(DRAWS):
        values, both = drawn_split(target, generator)
        units = units_of(target, values)
        tallies = {n: target.tally(each, values, units.of_image, FITTED) for n, each in zip("ab", both, strict=True)}
        replicates = {name: replicate_figures(each, units) for name, each in tallies.items()}
        ones = np.ones((1, len(units.stratum)), np.float32)
        points = {
            name: {key: float(figure[0]) for key, figure in each.figures(ones).items()}
            for name, each in tallies.items()
        }
        scores = {n: target.scores(each, values, FITTED) for n, each in zip("ab", both, strict=True)}
        found = compare(("a", "b"), target, scores, points, replicates, grouped=False)
        alarms.append(found["bootstrap_p"] < 1 - LEVEL)
        signs.append(found[f"{primary}_difference"] > 0)
        for name, each in replicates["a"].items():
            low, high = interval(each) or (points["a"][name],) * 2
            held[name].append(low <= truth[name] <= high)
    error = 3 * np.sqrt(0.05 * 0.95 / DRAWS)
    assert np.mean(alarms) <= 0.05 + error, kind
    assert 0.4 < np.mean(signs) < 0.6, kind
    assert 0.95 - error - 0.02 <= np.mean(held[primary]), (kind, np.mean(held[primary]))
    print(kind, f"alarms {np.mean(alarms):.3f}", {name: round(float(np.mean(each)), 3) for name, each in held.items()})


def test_a_better_model_is_told_apart_in_the_direction_of_its_measure() -> None:
    target = TARGETS["number"]
    generator = np.random.default_rng(0)
    values = generator.normal(size=(400, 1)).astype(np.float32)
    better, worse = (values + generator.normal(0, spread, (400, 1)) for spread in (0.3, 0.6))
    models: dict[str, Any] = {"a": better, "b": worse}
    units = units_of(target, values)
    tallies = {name: target.tally(each, values, units.of_image, {}) for name, each in models.items()}
    replicates = {name: replicate_figures(each, units) for name, each in tallies.items()}
    scores = {name: target.scores(each, values, {}) for name, each in models.items()}
    points = {name: {"mae": float(each.mean()), "rmse": 0.5, "fit_seconds": 2.0} for name, each in scores.items()}
    found = compare(("a", "b"), target, scores, points, replicates, grouped=False)
    assert found["mae_difference"] == pytest.approx(points["b"]["mae"] - points["a"]["mae"], abs=1e-6)
    assert found["mae_interval"][0] > 0
    assert "only_model_right" not in found
    measure = target.measures["mae"]
    sentence = verdict(found, points, 400, "mae", measure)
    assert sentence.startswith(f"Worth it here: a has MAE {points['a']['mae']:.3g} years and b ")
    turned = compare(("b", "a"), target, scores, points, replicates, grouped=False)
    assert verdict(turned, points, 400, "mae", measure).startswith("Not worth it here: b has MAE ")
    # As many images as would show the difference: the interval's half width falls with their root.
    unsure = {**found, "mae_difference": 0.01, "mae_interval": [-0.01, 0.03]}
    assert verdict(unsure, points, 400, "mae", measure).endswith("about 1,600 test images would tell.")
    undefined = {**found, "mae_difference": None}
    assert "MAE is not defined on these test images" in verdict(undefined, points, 400, "mae", measure)


def test_strata_are_those_of_images_that_are_in_one() -> None:
    labels = Labels(["a", "b"])
    several = np.array([[1, 1], [1, 0], [0, 0]], np.float32)
    assert len(set(strata_of(labels.strata(several), 3).tolist())) == 1
    alone = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    assert strata_of(labels.strata(alone), 3).tolist() == [0, 1, -1]
    numbers = make_target("number", ["x"], {"units": [""], "mean": [0.0], "scale": [1.0]})
    values = np.array([[1.0], [2], [3], [4], [np.nan]], np.float32)
    assert strata_of(numbers.strata(values), 5).tolist() == [0, 1, 2, 3, -1]


def test_means_on_redrawn_sets_leave_out_what_is_unknown() -> None:
    units = assign_units(np.zeros(4, np.int64), None)
    each = np.array([1.0, np.nan, 3.0, 5.0])
    times = np.concatenate(list(units.draws()))
    expected = (times[:, [0, 2, 3]] @ [1, 3, 5]) / np.maximum(times[:, [0, 2, 3]].sum(axis=1), 1)
    found = replicate_means(each, units)
    there = ~np.isnan(found)
    np.testing.assert_allclose(found[there], expected[there], rtol=1e-6)
    assert (~there).sum() == (times[:, 1] == 4).sum()
