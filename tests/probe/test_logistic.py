import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from headstart.probe import logistic
from headstart.probe.logistic import LinearSolver, RowSums, conjugate_gradients, linear_path
from headstart.targets.classes import Classes

Array = NDArray[np.float64]
Data = Callable[..., tuple[Array, NDArray[np.int64]]]
PATH = [1e-6, 1.0, 1e-2, 1e-4]  # in no order


@pytest.fixture
def data() -> Data:
    """Correlated features off zero, and labels that a linear head gets mostly right."""

    def make(classes: int, count: int = 250, width: int = 12) -> tuple[Array, NDArray[np.int64]]:
        generator = np.random.default_rng(classes)
        features = generator.normal(size=(count, width)) @ generator.normal(size=(width, width)) + 3
        logits = features @ generator.normal(size=(width, classes)) + generator.gumbel(size=(count, classes)) * 4
        labels = (logits - logits.mean(0)).argmax(1)
        assert len(np.unique(labels)) == classes
        return features, labels

    return make


def objective(weight: Array, bias: Array, features: Array, labels: NDArray[np.int64], l2: float) -> float:
    logits = features @ weight.T + bias
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return float(losses.mean() + l2 * (weight**2).sum())


def reference(features: Array, labels: NDArray[np.int64], l2: float) -> tuple[Array, Array]:
    """scikit-learn's minimum of the same objective."""
    classes = labels.max() + 1
    # Its objective is C·n·CE + ½‖w‖²; of two classes it has one row, the difference of ours, which are ± half of it.
    strength = l2 / 2 if classes == 2 else l2
    model = LogisticRegression(
        C=1 / (2 * strength * len(labels)), tol=1e-8, max_iter=10_000, solver="newton-cholesky"
    ).fit(features, labels)
    if classes == 2:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate(
            [-model.intercept_, model.intercept_]
        ) / 2
    return model.coef_, model.intercept_


@pytest.mark.parametrize("classes", [2, 3])
def test_the_minimum_is_scikit_learns(data: Data, classes: int) -> None:
    features, labels = data(classes)
    for l2, weight, bias in linear_path(features, labels, Classes([*map(str, range(classes))]), PATH):
        found = objective(weight, bias, features, labels, l2)
        assert found == pytest.approx(objective(*reference(features, labels, l2), features, labels, l2), rel=1e-6)
        assert weight.sum(0) == pytest.approx(np.zeros(weight.shape[1]), abs=1e-9)  # what the penalty implies


def test_the_path_goes_from_the_largest_to_the_smallest(data: Data) -> None:
    heads = list(linear_path(*data(3), Classes("abc"), PATH))
    assert [l2 for l2, _, _ in heads] == sorted(PATH, reverse=True)
    norms = [(weight**2).sum() for _, weight, _ in heads]
    assert norms == sorted(norms)
    assert all((weight.shape, bias.shape) == ((3, 12), (3,)) for _, weight, bias in heads)


def test_many_correlated_features_and_rare_classes_reach_the_minimum_in_few_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The products with the Hessian are the time; without good coordinates they are thousands."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2000, 60)) / np.arange(1, 61) @ generator.normal(size=(60, 60))
    features = np.maximum(features, 0)
    logits = features @ generator.normal(size=(60, 5))
    labels = (2 * logits / logits.std() + generator.gumbel(size=(2000, 5)) - np.arange(5)).argmax(1)
    products = 0

    def counted(product: Callable[[Array], Array], *others: Any) -> Any:
        def count(direction: Array) -> Array:
            nonlocal products
            products += 1
            return product(direction)

        return conjugate_gradients(count, *others)

    monkeypatch.setattr(logistic, "conjugate_gradients", counted)
    for l2, weight, bias in linear_path(features, labels, Classes("abcde"), PATH):
        found = objective(weight, bias, features, labels, l2)
        assert found == pytest.approx(objective(*reference(features, labels, l2), features, labels, l2), rel=1e-9)
    assert 20 < products < 300


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_the_objective_is_within_the_tolerance_of_its_minimum(tolerance: float) -> None:
    """As the solver estimates it, at each λ of a path down to separable classes."""
    generator = np.random.default_rng(1)
    features = np.maximum(generator.normal(size=(600, 40)) @ generator.normal(size=(40, 40)), 0)
    labels = (features @ generator.normal(size=(40, 12)) + 20 * generator.gumbel(size=(600, 12))).argmax(1)
    l2s, target = [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5], Classes("abcdefghijkl")
    fine = LinearSolver(RowSums(features, labels, target), target).path(l2s, tolerance=1e-12)
    for (l2, *head), (_, *lowest) in zip(
        linear_path(features, labels, target, l2s, tolerance=tolerance), fine, strict=True
    ):
        minimum = objective(lowest[0], lowest[1], features, labels, l2)
        assert -1e-12 < objective(head[0], head[1], features, labels, l2) / minimum - 1 < tolerance


def test_perfectly_separated_classes_of_large_features_converge_though_float32_does_not(
    data: Data, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features, _ = data(3)
    labels = features[:, :3].argmax(1)
    types = set()

    def watched(product: Callable[[Array], Array], right: Array, enough: float) -> Any:
        types.add(str(right.dtype))
        return conjugate_gradients(product, right, enough)

    monkeypatch.setattr(logistic, "conjugate_gradients", watched)
    for l2, weight, bias in linear_path(features * 1e5, labels, Classes("abc"), [1.0, 1e-2]):
        assert scaled_gradient(weight, bias, features * 1e5, labels, l2) < 1e-8
    assert types == {"float32", "float64"}
    assert not caplog.records


def test_where_the_path_comes_from_does_not_matter(data: Data) -> None:
    features, labels = data(3)
    *_, (_, warm, _) = linear_path(features, labels, Classes("abc"), [1.0, 1e-2, 1e-4])
    ((_, cold, _),) = linear_path(features, labels, Classes("abc"), [1e-4])
    assert warm == pytest.approx(cold, rel=1e-4, abs=1e-5)


def test_the_gradient_is_zero_at_the_solution_and_not_beside_it(data: Data) -> None:
    features, labels = data(3)
    generator = np.random.default_rng(0)
    for l2, weight, bias in linear_path(features, labels, Classes("abc"), [1e-1, 1e-3]):
        for _ in range(5):
            direction, shift = generator.normal(size=weight.shape), generator.normal(size=bias.shape)

            def along(t: float, *, at: float = 0.0) -> float:
                w = weight + (at + t) * direction  # noqa: B023  (called in this round of the loop only)
                return objective(w, bias + (at + t) * shift, features, labels, l2)  # noqa: B023

            step = 1e-5
            assert abs(along(step) - along(-step)) / (2 * step) < 1e-5
            assert abs(along(step, at=0.1) - along(-step, at=0.1)) / (2 * step) > 1e-3


def scaled_gradient(weight: Array, bias: Array, features: Array, labels: NDArray[np.int64], l2: float) -> float:
    """Largest entry of the gradient, each divided by the root of its own curvature."""
    logits = features @ weight.T + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    residual = (probabilities - np.eye(len(bias))[labels]) / len(labels)
    curvature = (probabilities * (1 - probabilities)).T @ features**2 / len(labels) + 2 * l2
    by_weight = np.abs(residual.T @ features + 2 * l2 * weight) / np.sqrt(curvature)
    return float(max(by_weight.max(), np.abs(residual.sum(0)).max()))


def test_features_of_very_different_sizes_and_repeated_ones_converge(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = data(3)
    features = (features - 3) * np.logspace(-3, 3, features.shape[1])
    features = np.column_stack([features, features[:, :3], np.ones(len(labels)), np.zeros(len(labels))])
    for l2, weight, bias in linear_path(features, labels, Classes("abc"), [1.0, 1e-3, 1e-6]):
        assert scaled_gradient(weight, bias, features, labels, l2) < 1e-5
    assert not caplog.records


def test_an_offset_of_the_features_is_the_biass(data: Data) -> None:
    features, labels = data(3)
    for (l2, weight, bias), (_, moved, moved_bias) in zip(
        linear_path(features, labels, Classes("abc"), [1e-2]),
        linear_path(features + 1000, labels, Classes("abc"), [1e-2]),
        strict=True,
    ):
        assert moved == pytest.approx(weight, abs=1e-4)
        found = objective(moved, moved_bias, features + 1000, labels, l2)
        assert found == pytest.approx(objective(weight, bias, features, labels, l2), rel=1e-6)


@pytest.mark.parametrize("block_values", [1, 100, 2**24])
def test_torch_and_any_size_of_blocks_give_the_same_heads(
    data: Data, block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = data(3)
    expected = list(linear_path(features, labels, Classes("abc"), PATH))
    monkeypatch.setattr(logistic, "BLOCK_VALUES", block_values)
    for kind in (np.asarray, torch.as_tensor):
        for found, wanted in zip(
            linear_path(kind(features), kind(labels), Classes("abc"), PATH), expected, strict=True
        ):
            assert isinstance(found[1], np.ndarray)
            assert found[1] == pytest.approx(wanted[1], abs=1e-4)
            assert objective(*found[1:], features, labels, found[0]) == pytest.approx(
                objective(*wanted[1:], features, labels, found[0]), rel=1e-9
            )


def test_a_coarse_head_is_refined_from_where_it_is(data: Data) -> None:
    features, labels = data(3)
    ((_, *fine),) = linear_path(features, labels, Classes("abc"), [1e-4])
    ((_, *coarse),) = linear_path(features, labels, Classes("abc"), [1e-4], tolerance=1e-2)
    ((_, *refined),) = LinearSolver(RowSums(features, labels, Classes("abc")), Classes("abc")).path(
        [1e-4], start=(coarse[0], coarse[1])
    )
    lowest = objective(fine[0], fine[1], features, labels, 1e-4)
    assert objective(coarse[0], coarse[1], features, labels, 1e-4) > lowest * (1 + 1e-7)
    assert objective(refined[0], refined[1], features, labels, 1e-4) == pytest.approx(lowest, rel=1e-9)


def test_half_precision_features_are_solved_in_double(data: Data) -> None:
    features, labels = data(3)
    half = features.astype(np.float16)
    ((_, weight, _),) = linear_path(half, labels, Classes("abc"), [1e-2])
    ((_, expected, _),) = linear_path(half.astype(np.float64), labels, Classes("abc"), [1e-2])
    assert weight.dtype == np.float64
    assert weight == pytest.approx(expected, abs=1e-6)


def test_a_minimum_out_of_reach_is_a_warning_and_not_the_end(
    data: Data, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = data(3)
    monkeypatch.setattr(logistic, "MAX_NEWTON_STEPS", 1)
    with caplog.at_level(logging.WARNING):
        ((l2, weight, bias),) = linear_path(features, labels, Classes("abc"), [1e-6])
    assert "λ = 1e-06 is not quite at its minimum" in caplog.text
    assert objective(weight, bias, features, labels, l2) < np.log(3)
