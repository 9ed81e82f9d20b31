"""Gradient descent stopped early, against the exact filter, and against the λ path."""

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.probe.logistic import linear_path
from headstart.targets.classes import Classes
from headstart.theory import oracle
from headstart.theory.implicit_l2 import (
    descent_filter,
    descent_path,
    equivalent_l2,
    nearest_l2,
    ridge_filter,
    safe_rate,
)

Array = NDArray[np.float64]
WIDTH, CLASSES = 6, 3
TARGET = Classes("abc")


@pytest.fixture
def regression() -> tuple[Array, Array]:
    """Correlated inputs of very different sizes along their axes, the least of them repeated: one eigenvalue is 0."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(50, WIDTH)) * np.logspace(0.5, -2, WIDTH) @ generator.normal(size=(WIDTH, WIDTH))
    return np.column_stack([inputs, inputs[:, -1]]), generator.normal(size=50)


@pytest.fixture
def classification() -> tuple[Array, NDArray[np.int64]]:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(CLASSES), (30, 50, 80))
    features = generator.normal(size=(len(labels), WIDTH)) * np.logspace(0, -1, WIDTH) + 2
    features[:, :CLASSES] += np.eye(CLASSES)[labels]
    return features, labels


def eigen(inputs: Array) -> tuple[Array, Array]:
    eigenvalues, axes = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    return eigenvalues[1:], axes[:, 1:]  # without the one that is 0


@pytest.mark.parametrize("fraction", [0.1, 1.0, 1.9])
def test_the_filter_is_what_the_plain_loop_does(regression: tuple[Array, Array], fraction: float) -> None:
    inputs, targets = regression
    eigenvalues, axes = eigen(inputs)
    rate = fraction / (2 * eigenvalues[-1])  # 2τσ is at most the fraction: below 2 it converges
    least_squares = axes.T @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    weight = np.zeros(inputs.shape[1])
    for t in range(1, 2001):
        weight -= rate * 2 / len(inputs) * inputs.T @ (inputs @ weight - targets)
        if t in {1, 10, 300, 2000}:
            filtered = axes @ (descent_filter(eigenvalues, rate, t) * least_squares)
            assert weight == pytest.approx(filtered, abs=1e-8)


def test_ridges_filter_is_ridges_minimum(regression: tuple[Array, Array]) -> None:
    inputs, targets = regression
    eigenvalues, axes = eigen(inputs)
    least_squares = axes.T @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    for l2 in (1e-3, 1e-1, 10.0):
        normal = inputs.T @ inputs / len(inputs) + l2 * np.eye(inputs.shape[1])
        solution = np.linalg.solve(normal, inputs.T @ targets / len(inputs))
        assert axes @ (ridge_filter(eigenvalues, l2) * least_squares) == pytest.approx(solution, abs=1e-8)


def test_the_filters_meet_at_either_end_and_differ_by_30_percent_at_most_between() -> None:
    """1 − e^(−x) against x/(1 + x), x = 2τσt: equal slopes at 0, both 1 at ∞."""
    rate, steps = 1e-4, 1000
    x = np.logspace(-4, 3, 200)
    eigenvalues = x / (2 * rate * steps)
    descent, ridge = descent_filter(eigenvalues, rate, steps), ridge_filter(eigenvalues, equivalent_l2(rate, steps))
    assert descent == pytest.approx(-np.expm1(-x), abs=1e-3)
    assert descent[0] / ridge[0] == pytest.approx(1, abs=1e-3)
    assert descent[-1] / ridge[-1] == pytest.approx(1, abs=2e-3)
    assert 1.25 < (descent / ridge).max() < 1.3  # stopping shrinks the middle less


def test_the_descent_is_the_oracles(classification: tuple[Array, NDArray[np.int64]]) -> None:
    features, labels = classification
    one_hot, rate = np.eye(CLASSES)[labels], safe_rate(features, TARGET)
    centred = features - features.mean(0)
    start = [np.zeros((WIDTH, CLASSES)), np.log(one_hot.mean(0)) - np.log(one_hot.mean(0)).mean()]
    for t, weight, bias in descent_path(features, labels, TARGET, rate, [1, 7, 40]):
        expected, free = oracle.descend(start, centred, one_hot, [0.0], rate=rate, steps=t)
        assert weight == pytest.approx(expected.T, abs=1e-10)
        assert bias + features.mean(0) @ weight.T == pytest.approx(free, abs=1e-10)


def test_at_the_safe_rate_every_step_lowers_the_loss(classification: tuple[Array, NDArray[np.int64]]) -> None:
    features, labels = classification
    one_hot = np.eye(CLASSES)[labels]
    for scale in (1e-3, 1.0, 1e3):
        scaled = features * scale
        losses = [
            oracle.loss([weight.T, bias], scaled, one_hot, [0.0])
            for _, weight, bias in descent_path(scaled, labels, TARGET, safe_rate(scaled, TARGET), list(range(30)))
        ]
        assert (np.diff(losses) < 0).all()


def test_bohnings_bound_is_above_the_hessian_and_near_it_for_two_classes() -> None:
    """Two even classes at zero weights: the softmax's p(1 − p) is ¼ and the bound, ½ σ, is reached."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 3)) * 5
    one_hot = np.eye(2)[np.arange(400) % 2]
    rate = safe_rate(features, TARGET)
    centred = features - features.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    steepest, h = np.outer(axes[:, -1], [1, -1]) / np.sqrt(2), 1e-3

    def along(t: float) -> float:
        return oracle.loss([t * steepest, np.zeros(2)], centred, one_hot, [0.0])

    curvature = (along(h) - 2 * along(0) + along(-h)) / h**2
    assert curvature == pytest.approx(1 / rate, rel=1e-3)


def test_the_first_steps_are_the_theorys_and_later_ones_within_its_factor(
    classification: tuple[Array, NDArray[np.int64]],
) -> None:
    features, labels = classification
    rate = safe_rate(features, TARGET) / 50
    l2s = np.geomspace(1e3, 1e-3, 60) * equivalent_l2(rate, 100)
    path = np.array([weight for _, weight, _ in linear_path(features, labels, TARGET, l2s.tolist())])
    for t, weight, _ in descent_path(features, labels, TARGET, rate, [1, 10, 100, 1000]):
        nearest = nearest_l2(weight, l2s, path)
        assert not nearest.at_end
        ratio = nearest.l2 / equivalent_l2(rate, t)
        assert ratio == pytest.approx(1, abs=0.02) if t == 1 else 0.4 < ratio <= 1.02
        assert nearest.distance < 0.2


def test_the_nearest_point_lies_between_and_an_end_is_told() -> None:
    l2s = np.array([1.0, 1e-2, 1e-4])
    path = np.array([[[0.0, 1.0]], [[2.0, 1.0]], [[2.0, 3.0]]])
    between = nearest_l2(np.array([[1.0, 0.0]]), l2s, path)
    assert between.l2 == pytest.approx(1e-1)
    assert between.distance == pytest.approx(1)
    assert not between.at_end
    assert nearest_l2(np.array([[2.0, 2.0]]), l2s, path).l2 == pytest.approx(1e-3)
    assert not nearest_l2(np.array([[2.0, 1.0]]), l2s, path).at_end
    first, last = nearest_l2(np.array([[-1.0, 1.0]]), l2s, path), nearest_l2(np.array([[2.0, 9.0]]), l2s, path)
    assert [first.l2, last.l2] == pytest.approx([1.0, 1e-4])
    assert first.at_end
    assert last.at_end
