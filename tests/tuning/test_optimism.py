"""What choosing costs, where it is known."""

import numpy as np
import pytest

from headstart.targets.classes import Classes
from headstart.targets.labels import Labels
from headstart.training.figures import Monitor
from headstart.tuning.optimism import corrected, corrected_measure

LABELS = np.arange(200) % 4


def test_among_equals_the_best_is_lucky_and_the_estimate_says_so() -> None:
    """50 configurations, each wrong on a random 30 % of the images."""
    errors = (np.random.default_rng(0).random((50, 200)) < 0.3).astype(np.float32)
    lucky = errors.mean(axis=1).min()
    assert lucky < 0.24
    estimate = corrected(errors, errors, LABELS)
    assert estimate.value == pytest.approx(0.3, abs=0.02)
    assert estimate.interval is not None
    assert estimate.interval[0] < 0.3 < estimate.interval[1]


def test_a_clear_winner_costs_nothing() -> None:
    generator = np.random.default_rng(0)
    errors = (generator.random((5, 200)) < np.array([0.1, 0.5, 0.5, 0.5, 0.5])[:, None]).astype(np.float32)
    assert corrected(errors, errors, LABELS).value == pytest.approx(errors[0].mean(), abs=0.005)


def test_one_figure_chooses_and_another_is_estimated() -> None:
    costs = np.array([[0.0] * 200, [1.0] * 200], np.float32)
    figures = np.array([[3.0] * 200, [2.0] * 200], np.float32)
    assert corrected(costs, figures, LABELS).value == 3.0
    assert corrected(costs, figures, LABELS, [str(i // 10) for i in range(200)]).value == 3.0


def test_a_measure_of_all_images_is_estimated_as_a_mean_of_them_is() -> None:
    """The accuracy, which is both: the strata differ, so the draws do."""
    generator = np.random.default_rng(0)
    outputs = [(np.eye(4)[LABELS] + generator.normal(0, 0.8, (200, 4))).astype(np.float32) for _ in range(10)]
    errors = np.array([each.argmax(1) != LABELS for each in outputs], np.float32)
    monitor = Monitor("val_accuracy", higher_is_better=True)
    found = corrected_measure(outputs, LABELS, Classes([*"abcd"]), monitor)
    assert found is not None
    assert found.value == pytest.approx(1 - corrected(errors, errors, LABELS).value, abs=0.01)
    assert found.value < 1 - errors.mean(axis=1).min()


@pytest.mark.parametrize("figure", ["val_mean_ap", "val_loss"])
def test_among_equals_the_best_ranking_is_lucky_too(figure: str) -> None:
    generator, target = np.random.default_rng(0), Labels([*"ab"])
    values = (generator.random((150, 2)) < 0.4).astype(np.float32)
    outputs = [(values + generator.normal(0, 1, (150, 2))).astype(np.float32) for _ in range(12)]
    units = np.arange(150)
    each = [target.tally(one, values, units, target.fit(one, values)) for one in outputs]
    precisions = [float(one.figures(np.ones((1, 150), np.float32))["mean_ap"][0]) for one in each]
    groups = [str(i // 2) for i in range(150)]
    estimate = corrected_measure(outputs, values, target, Monitor(figure, figure != "val_loss"), groups)
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(precisions), abs=0.02)
    assert estimate.value < max(precisions)


def test_what_no_image_defines_is_not_estimated() -> None:
    target, values = Labels([*"ab"]), np.zeros((20, 2), np.float32)
    outputs = [np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)]
    assert corrected_measure(outputs, values, target, Monitor("val_loss", higher_is_better=False)) is None
