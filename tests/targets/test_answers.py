"""What a model says of an image, and how much of it is the same in other outputs."""

from typing import Any

import numpy as np
import pytest

from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import CLOSE, QUANTILES, Numbers

NAMES = ["a", "b", "c"]
TARGETS: list[Any] = [
    Classes(NAMES),
    Labels(NAMES),
    Grades([*NAMES, "d"]),
    Numbers(NAMES, ["kg"] * 3, [1.0, 2.0, 3.0], [1.0, 10.0, 0.1]),
    Numbers(["a"], [""], [5.0], [2.0], QUANTILES),
]


def test_a_grade_stands_first_where_another_is_likelier() -> None:
    """Of 40, 15 and 45 % the second is the median."""
    edges = np.array([[0.6, 0.45]])
    outputs = np.log(edges) - np.log1p(-edges)
    (answer,) = Grades(NAMES).answers(outputs, {"temperature": 1.0}, None)
    assert (answer.value, [name for name, _ in answer.parts]) == ("b", ["b", "c", "a"])
    assert [p for _, p in answer.parts] == pytest.approx([0.15, 0.45, 0.4])
    (first,) = Grades(NAMES).answers(outputs, {"temperature": 1.0}, None, top=1)
    assert first.parts == answer.parts[:1]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_only_as_many_parts_as_wanted_where_some_are_likelier(target: Any) -> None:
    outputs = np.random.default_rng(0).normal(size=(20, target.outputs)).astype(np.float32)
    fitted = target.uncalibrated(None)
    for whole, short in zip(
        target.answers(outputs, fitted, None), target.answers(outputs, fitted, None, 2), strict=True
    ):
        kept = 2 if "top" in target.answer_fields else len(target.names)
        assert short == whole._replace(parts=whole.parts[:kept])
        assert set(target.prediction(whole)) == set(target.answer_fields)


def test_uncalibrated_labels_are_those_of_calibrated_ones() -> None:
    generator, target = np.random.default_rng(0), Labels(["a", "b", "c", "d", "e"])
    outputs = generator.normal(scale=3, size=(500, 5))
    fitted = {"temperatures": [0.3, 1.0, 2.5, 2.0, 0.5], "thresholds": [0.2, 0.5, 0.9, 0.0, 1.0]}
    plain = target.uncalibrated(fitted)
    pairs = list(zip(target.answers(outputs, fitted, None), target.answers(outputs, plain, None), strict=True))
    assert all(calibrated.value.keys() == raw.value.keys() for calibrated, raw in pairs)
    assert {name: sum(name in raw.value for _, raw in pairs) for name in "de"} == {"d": 500, "e": 0}
    assert len({len(raw.value) for _, raw in pairs}) > 2
    raw_probabilities = dict(pairs[0][1].parts)
    assert raw_probabilities["a"] == pytest.approx(1 / (1 + np.exp(-outputs[0, 0])))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_outputs_agree_with_themselves_and_not_with_others(target: Any) -> None:
    outputs = np.random.default_rng(0).normal(size=(50, target.outputs)).astype(np.float32)
    fitted = target.uncalibrated(None)
    values = 1.1 * target.points(outputs) if target.kind == "number" else np.zeros(50, np.int64)
    np.testing.assert_array_equal(target.agreement(outputs, outputs, values, fitted), np.ones(50))
    others = target.agreement(outputs, -outputs, values, fitted)
    assert others.shape == (50,)
    assert others.mean() < 0.5


def test_labels_agree_by_the_fraction_that_does() -> None:
    labels, outputs = TARGETS[1], np.zeros((1, 3)) + 0.05
    fitted, values = labels.uncalibrated(None), np.ones((1, 3), np.float32)
    assert labels.agreement(outputs, outputs * [1, -1, 1], values, fitted).tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_numbers_agree_within_a_fraction_of_the_models_own_error(size: float) -> None:
    """The better a model knows a number, the smaller a difference counts; what is known of no image tells nothing."""
    numbers, outputs = TARGETS[3], np.zeros((200, 3))
    errors = np.random.default_rng(0).normal(size=(200, 3)) * size
    values = ((outputs - errors) * numbers.scale + numbers.mean).astype(np.float32)
    rmse = np.sqrt((errors**2).mean(axis=0))
    moved = outputs + np.array([0, 0.99, 1.01]) * CLOSE * rmse
    np.testing.assert_allclose(numbers.agreement(outputs, moved, values, {}), 2 / 3)
    values[100:, 1] = np.nan  # the others still tell the error, a little another one
    np.testing.assert_allclose(numbers.agreement(outputs, outputs + 0.5 * CLOSE * rmse, values, {}), 1)
    values[:, 2] = np.nan
    np.testing.assert_allclose(numbers.agreement(outputs, moved * [1, 0, 1], values, {}), 1)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_the_loss_as_a_likelihood(target: Any) -> None:
    """Of numbers 5 % more of the error are as many nats, however large it is; of others the loss is in nats already."""
    if target.kind != "number":
        assert target.nll(0.3) == 0.3
        return
    power = 1 if target.quantiles else 2
    for error in (0.01, 0.5):
        assert target.nll((1.05 * error) ** power) - target.nll(error**power) == pytest.approx(np.log(1.05))
    assert np.isfinite(target.nll(0.0))
    assert np.isnan(target.nll(np.nan))
