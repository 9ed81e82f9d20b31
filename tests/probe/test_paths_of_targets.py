"""The λ paths of labels, numbers and grades against other solvers of the written-out objectives."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge

from headstart.probe.logistic import LinearSolver, RowSums, linear_path, ridge_path
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import Target

Array = NDArray[np.float64]
PATH = [1.0, 1e-2, 1e-4]
IMAGES, WIDTH = 300, 8


def _features() -> Array:
    """Correlated and off zero."""
    generator = np.random.default_rng(0)
    return generator.normal(size=(IMAGES, WIDTH)) @ generator.normal(size=(WIDTH, WIDTH)) + 3


def _scores(outputs: int, noise: float = 3.0) -> Array:
    generator, features = np.random.default_rng(1), _features()
    centred = features - features.mean(axis=0)
    return np.asarray(
        centred @ generator.normal(size=(WIDTH, outputs)) + noise * generator.normal(size=(IMAGES, outputs))
    )


def labels(unknown: float) -> tuple[Labels, NDArray[np.float32]]:
    values = (_scores(3) > [0, 4, 8]).astype(np.float32)
    values[np.random.default_rng(2).random(values.shape) < unknown] = np.nan
    return Labels(["common", "some", "rare"]), values


def numbers(unknown: float) -> tuple[Numbers, NDArray[np.float32]]:
    values = (_scores(3) * [1, 10, 0.1] + [5, 100, 0]).astype(np.float32)
    values[np.random.default_rng(2).random(values.shape) < [0, unknown, unknown / 2]] = np.nan
    return Numbers(["a", "b", "c"], ["", "", ""], [0.0] * 3, [1.0] * 3).trained(values), values


def grades() -> tuple[Grades, NDArray[np.int64]]:
    return Grades(["none", "mild", "bad", "worst"]), np.searchsorted([-4.0, 0.0, 6.0], _scores(1)[:, 0])


def objective(target: Target, weight: Array, bias: Array, values: Any, l2: float) -> float:
    return float(target.losses(_features() @ weight.T + bias, values).mean() + l2 * (weight**2).sum())


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_labels_are_scikit_learns_logistic_regressions_side_by_side(unknown: float) -> None:
    features, (target, values) = _features(), labels(unknown)
    for l2, weight, bias in linear_path(features, values, target, PATH):
        expected, offsets = np.zeros_like(weight), np.zeros_like(bias)
        for i, of_label in enumerate(~np.isnan(values).T):
            model = LogisticRegression(C=1 / (2 * l2 * IMAGES), tol=1e-10, solver="newton-cholesky", max_iter=1000)
            model.fit(features[of_label], values[of_label, i])
            expected[i], offsets[i] = model.coef_[0], model.intercept_[0]
        found = objective(target, weight, bias, values, l2)
        assert found == pytest.approx(objective(target, expected, offsets, values, l2), rel=1e-9)
        assert weight == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_numbers_are_scikit_learns_ridge_of_the_images_where_they_are_known(unknown: float) -> None:
    features, (target, values) = _features(), numbers(unknown)
    inside = target.responses(values, features)
    for l2, weight, bias in linear_path(features, values, target, PATH):
        for i, of_number in enumerate(~np.isnan(values).T):
            model = Ridge(alpha=l2 * IMAGES).fit(features[of_number], inside[of_number, i])
            assert weight[i] == pytest.approx(model.coef_, rel=1e-8, abs=1e-11)
            assert bias[i] == pytest.approx(model.intercept_, rel=1e-8, abs=1e-11)


def test_grades_have_the_least_of_the_written_out_objective() -> None:
    features, (target, values) = _features(), grades()
    above = values[:, None] > np.arange(3)

    def written_out(parameters: Array, l2: float) -> tuple[float, Array]:
        """One weight and three thresholds: the rows of the head are three times the weight."""
        weight, bias = parameters[:WIDTH], parameters[WIDTH:]
        logits = (features @ weight)[:, None] + bias
        losses = np.logaddexp(0, logits) - above * logits
        slope = (1 / (1 + np.exp(-logits)) - above) / IMAGES
        by_weight = features.T @ slope.sum(axis=1) + 6 * l2 * weight
        return losses.sum() / IMAGES + 3 * l2 * weight @ weight, np.append(by_weight, slope.sum(axis=0))

    for l2, weight, bias in linear_path(features, values, target, PATH):
        lowest = minimize(
            written_out,
            np.zeros(WIDTH + 3),
            (l2,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 10**4, "ftol": 0, "gtol": 1e-9},
        )
        assert objective(target, weight, bias, values, l2) == pytest.approx(lowest.fun, rel=1e-9)
        assert weight[0] == pytest.approx(lowest.x[:WIDTH], abs=1e-4)
        assert (weight == weight[0]).all()
        assert (np.diff(bias) < 0).all()


@pytest.mark.parametrize("case", [labels(0.3), numbers(0.3), grades()], ids=["labels", "numbers", "grades"])
def test_torch_gives_the_same_heads_and_the_loss_is_that_of_the_head(case: tuple[Target, Any]) -> None:
    features, (target, values) = _features(), case
    here = LinearSolver(RowSums(features, values, target), target)
    there = LinearSolver(RowSums(torch.as_tensor(features), torch.as_tensor(values), target), target)
    for (l2, *head), (_, weight, bias) in zip(here.path(PATH), there.path(PATH), strict=True):
        assert isinstance(weight, np.ndarray)
        value = objective(target, head[0], head[1], values, l2)
        assert objective(target, weight, bias, values, l2) == pytest.approx(value, rel=1e-9)
        assert here.loss + l2 * (head[0] ** 2).sum() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_generalised_cross_validation_is_its_formula(unknown: float) -> None:
    features, (target, values) = _features(), numbers(unknown)
    inside = target.responses(values, features)
    solver = LinearSolver(RowSums(features, values, target), target)
    for l2, _, _ in solver.path(PATH):
        expected = 0.0
        for y in inside.T:
            x, of_number = np.column_stack([features, np.ones(IMAGES)])[~np.isnan(y)], y[~np.isnan(y)]
            penalty = np.diag([l2 * IMAGES] * WIDTH + [0])
            fits = x @ np.linalg.solve(x.T @ x + penalty, x.T)
            residuals = of_number - fits @ of_number
            expected += residuals @ residuals / (1 - np.trace(fits) / len(x)) ** 2 / IMAGES
        assert solver.gcv == pytest.approx(expected, rel=1e-9)


def test_of_numbers_that_are_fitted_exactly_the_estimate_is_that_of_no_weights() -> None:
    """Fewer images than features, of such a size that rounding leaves neither residuals nor freedom."""
    features = 1e8 * _features()[:6]
    target, values = numbers(0.0)
    solver = LinearSolver(RowSums(features, values[:6], target), target)
    for _ in solver.path(PATH):
        assert solver.loss < 1e-12
        assert solver.gcv == pytest.approx(target.responses(values[:6], features).var(axis=0).sum())


def test_generalised_cross_validation_chooses_a_good_l2() -> None:
    """Of noise that many features could learn by heart: near the best on new images, and neither end of the path."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=60) / np.arange(1, 61)
    features = generator.normal(size=(4080, 60))
    values = (features @ truth + generator.normal(size=4080)).astype(np.float32)[:, None]
    target = Numbers(["a"], [""], [0.0], [1.0])
    solver = LinearSolver(RowSums(features[:80], values[:80], target), target)
    l2s, guesses, errors = np.geomspace(1e-4, 1e2, 25).tolist(), [], []
    for _, weight, bias in solver.path(l2s):
        guesses.append(solver.gcv or 0.0)
        errors.append(float(((features[80:] @ weight.T + bias - values[80:]) ** 2).mean()))
    chosen = int(np.argmin(guesses))
    assert 0 < chosen < 24
    assert errors[chosen] < 1.1 * min(errors)
    assert errors[chosen] < 0.8 * errors[-1]


def test_a_number_that_is_known_nowhere_has_no_weights() -> None:
    features, (target, values) = _features(), numbers(0.0)
    values[:, 1] = np.nan
    for _, weight, bias in linear_path(features, values, target, PATH):
        assert not weight[1].any()
        assert bias[1] == 0
        assert weight[2].all()


def test_ridge_on_labels_leaves_unknown_ones_out() -> None:
    features, (target, values) = _features(), labels(0.3)
    for l2, weight, _ in ridge_path(features, values, target, PATH):
        for i, of_label in enumerate(~np.isnan(values).T):
            model = Ridge(alpha=l2 * IMAGES).fit(features[of_label], values[of_label, i])
            assert weight[i] == pytest.approx(model.coef_, rel=1e-8, abs=1e-11)


def test_a_label_that_all_images_have_costs_nothing_and_disturbs_no_other() -> None:
    features, (target, values) = _features(), labels(0.0)
    ((_, alone, _),) = linear_path(features, values[:, :1], Labels(["common"]), [1e-2])
    values[:, 1] = 1
    ((_, weight, bias),) = linear_path(features, values, target, [1e-2])
    assert weight[0] == pytest.approx(alone[0], abs=1e-4)
    assert bias[1] > 5


def test_classes_alone_have_weights_that_sum_to_zero() -> None:
    features, (target, values) = _features(), labels(0.0)
    ((_, weight, _),) = linear_path(features, values, target, [1e-2])
    assert abs(weight.sum(axis=0)).max() > 0.01
    ((_, weight, _),) = linear_path(features, grades()[1], Classes("abcd"), [1e-2])
    assert weight.sum(axis=0) == pytest.approx(0, abs=1e-12)
