"""What choosing costs, where it is known."""

import numpy as np
import pytest

from headstart.tuning.optimism import corrected

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
