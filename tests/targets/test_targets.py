"""The mathematics of every target: derivatives by differences, figures and thresholds against scikit-learn's."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from headstart.core import blocks
from headstart.core.blocks import Matrix, Rows
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.kinds import make_target
from headstart.targets.labels import Labels
from headstart.targets.number import QUANTILES, Numbers
from headstart.targets.target import LossOptions, Target, mean_loss, validation_figures
from helpers.constants import best_constant

IMAGES = 60


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _labels(unknown: float = 0.2, images: int = IMAGES, count: int = 4) -> np.ndarray:
    values = (_generator(1).random((images, count)) < [0.5, 0.3, 0.2, 0.7][:count]).astype(np.float32)
    values[_generator(2).random(values.shape) < unknown] = np.nan
    return values


def _numbers(images: int = IMAGES) -> np.ndarray:
    values = _generator(3).normal([50.0, -2.0], [10.0, 0.3], (images, 2)).astype(np.float32)
    values[_generator(4).random(values.shape) < 0.2] = np.nan
    return values


def _plain_numbers() -> Numbers:
    return Numbers(["age", "depth"], ["years", ""], [50.0, -2.0], [10.0, 0.3])


CASES: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "class": lambda: (Classes(["a", "b", "c"]), _generator(5).integers(0, 3, IMAGES)),
    "labels": lambda: (Labels(["a", "b", "c", "d"]), _labels()),
    "number": lambda: (_plain_numbers(), _numbers()),
    "grade": lambda: (Grades(["none", "mild", "severe", "worst"]), _generator(6).integers(0, 4, IMAGES)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Target, np.ndarray, np.ndarray]:
    target, values = CASES[request.param]()
    return target, values, _generator(7).normal(size=(IMAGES, target.outputs))


def _difference(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the central differences of a function of each row, (n, outputs)."""
    columns = []
    for i in range(at.shape[1]):
        change = np.zeros(at.shape[1])
        change[i] = step
        columns.append((function(at + change) - function(at - change)) / (2 * step))
    return np.stack(columns, axis=-1)


def test_the_derivatives_are_those_of_the_loss(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, outputs = case
    losses, gradient, state = target.derivatives(outputs, values)
    np.testing.assert_allclose(losses, target.losses(outputs, values), rtol=1e-12)
    np.testing.assert_allclose(gradient, _difference(lambda at: target.losses(at, values), outputs), atol=1e-7)
    hessians = _difference(lambda at: target.derivatives(at, values)[1], outputs)  # (n, outputs, outputs)
    np.testing.assert_allclose(target.curvatures(state), np.diagonal(hessians, axis1=1, axis2=2), atol=1e-7)
    change = _generator(8).normal(size=outputs.shape)
    product = np.einsum("nij,nj->ni", hessians, change)
    np.testing.assert_allclose(target.hessian_product(state, change), product, atol=1e-6)


def test_numpy_and_torch_compute_the_same(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, outputs = case
    there = torch.tensor(outputs, requires_grad=True), torch.tensor(values)
    losses = target.losses(*there)
    losses.sum().backward()
    np.testing.assert_allclose(losses.detach(), target.losses(outputs, values), rtol=1e-6)
    _, gradient, state = target.derivatives(outputs, values)
    assert there[0].grad is not None
    np.testing.assert_allclose(there[0].grad, gradient, atol=1e-6)
    at_torch = target.derivatives(there[0].detach(), there[1])
    np.testing.assert_allclose(at_torch[1], gradient, atol=1e-6)
    np.testing.assert_allclose(
        target.hessian_product(at_torch[2], at_torch[1]), target.hessian_product(state, gradient), atol=1e-6
    )


LOSSES: dict[str, list[LossOptions]] = {
    "class": [LossOptions("focal"), LossOptions(smoothing=0.1), LossOptions(shift=np.array([-1.0, 0.5, 0.2]))],
    "labels": [LossOptions("focal"), LossOptions("asymmetric"), LossOptions(weights=np.array([2.0, 1.0, 9.0, 0.5]))],
    "number": [LossOptions("huber")],
    "grade": [LossOptions(smoothing=0.1), LossOptions(weights=np.array([1.0, 2.0, 0.5, 4.0]))],
}


def _losses(target: Target, values: np.ndarray, options: LossOptions, outputs: np.ndarray) -> np.ndarray:
    return np.asarray(target.losses(outputs, values, options))


@pytest.mark.parametrize("at", ["anywhere", "zero"])
@pytest.mark.parametrize("kind", LOSSES)
def test_torch_has_the_gradients_of_every_loss(kind: str, at: str) -> None:
    """At 0 too, where a head of zeros starts, and where parts of a loss written in another way have kinks."""
    target, values = CASES[kind]()
    outputs = _generator(7).normal(size=(IMAGES, target.outputs)) * (at == "anywhere")
    for options in (LossOptions(), *LOSSES[kind]):
        there = torch.tensor(outputs, requires_grad=True)
        weights, shift = (None if each is None else torch.tensor(each) for each in (options.weights, options.shift))
        own = replace(options, weights=weights, shift=shift)
        target.losses(there, torch.tensor(values), own).sum().backward()
        assert there.grad is not None
        expected = _difference(partial(_losses, target, values, options), outputs)
        np.testing.assert_allclose(there.grad, expected, atol=1e-6, err_msg=str(options))


def test_no_other_bias_has_a_lower_loss(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, _ = case
    bias = best_constant(target, values)
    lowest = target.losses(np.tile(bias, (IMAGES, 1)), values).sum()
    for _ in range(20):
        other = bias + _generator().normal(0, 0.3, bias.shape)
        assert target.losses(np.tile(other, (IMAGES, 1)), values).sum() > lowest - 0.02 * abs(lowest)


def test_a_target_is_made_again_from_its_spec(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, outputs = case
    again = make_target(target.kind, target.names, target.spec())
    assert again == target
    np.testing.assert_array_equal(again.losses(outputs, values), target.losses(outputs, values))


def test_the_losses_of_labels_are_torch_s() -> None:
    target, values = Labels(["a", "b", "c", "d"]), _labels(unknown=0)
    outputs = torch.tensor(_generator(7).normal(0, 3, size=(IMAGES, 4)))
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs, torch.tensor(values, dtype=torch.float64), pos_weight=weights, reduction="none"
    )
    losses = target.losses(outputs, torch.tensor(values), LossOptions(weights=weights))
    np.testing.assert_allclose(losses, expected.sum(1), rtol=1e-6)


def test_unknown_labels_change_nothing() -> None:
    target, values = Labels(["a", "b", "c", "d"]), _labels(unknown=0.4)
    outputs = _generator(7).normal(size=(IMAGES, 4))
    unknown = np.isnan(values)
    for options in (LossOptions(), LossOptions("focal"), LossOptions("asymmetric"), LossOptions(smoothing=0.1)):
        losses = target.losses(outputs, values, options)
        assert np.isfinite(losses).all()
        np.testing.assert_array_equal(losses, target.losses(np.where(unknown, 99.0, outputs), values, options))


def test_the_quantile_loss_is_lowest_at_the_quantiles() -> None:
    values = _generator(0).exponential(10, (5000, 1)).astype(np.float32)
    target = Numbers(["x"], ["m"], [0.0], [1.0], QUANTILES)
    best = np.quantile(values, QUANTILES)
    lowest = target.losses(np.tile(best, (5000, 1)), values).mean()
    for i in range(3):
        for factor in (0.8, 1.2):
            other = best.copy()
            other[i] *= factor
            assert target.losses(np.tile(other, (5000, 1)), values).mean() > lowest


def test_the_link_and_the_responses_make_the_derivatives(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    """Mean responses less the responses, twice of squares: what makes the link the canonical one."""
    target, values, outputs = case
    responses = target.responses(values, outputs)
    assert responses.dtype == outputs.dtype
    odds = np.exp(outputs)
    means = {"softmax": odds / odds.sum(1, keepdims=True), "logistic": odds / (1 + odds), "identity": outputs}
    twice = 2 if target.link == "identity" else 1
    expected = np.where(np.isnan(responses), 0, twice * (means[target.link] - responses))
    np.testing.assert_allclose(target.derivatives(outputs, values)[1], expected, atol=1e-12)
    fitted = {"temperature": 1.0, "temperatures": [1.0] * target.outputs}
    np.testing.assert_allclose(target.expected(outputs, fitted), means[target.link], rtol=1e-12)


def test_the_score_is_the_tallys_first_figure(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, outputs = case
    fitted = target.fit(outputs, values)
    tally = target.tally(outputs, values, np.arange(IMAGES), fitted)
    measure = next(iter(target.measures))
    expected = tally.figures(np.ones((1, IMAGES), np.float32))[measure][0]
    assert target.score(outputs, values) == pytest.approx(expected, rel=1e-9)
    figures = validation_figures(target, outputs, values)
    assert figures == {"val_loss": mean_loss(target, outputs, values), f"val_{measure}": target.score(outputs, values)}
    assert figures["val_loss"] == pytest.approx(target.losses(outputs, values).mean())


def test_outputs_on_disk_give_the_same_in_blocks(
    case: tuple[Target, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, values, outputs = case
    if target.kind == "number":
        values[np.isnan(values).all(axis=1)] = 0  # no table may have such an image
    matrix, units, seen = outputs.astype(np.float32), np.arange(IMAGES), list[int]()

    def read(rows: slice) -> np.ndarray:
        seen.append(len(matrix[rows]))
        return matrix[rows]

    def all_of(given: Matrix) -> list[Any]:
        fitted, levels = target.fit(given, values), target.conformal(given, values)
        figures = target.tally(given, values, units, fitted).figures(np.ones((1, IMAGES), np.float32))
        return [
            fitted, levels, figures, target.score(given, values), target.reliability(given, values, fitted),
            target.scores(given, values, fitted), target.refined_losses(given, values, fitted),
            mean_loss(target, given, values), *map(tuple, target.covered(given, values, levels)),
        ]  # fmt: skip

    expected = _rounded(all_of(matrix))
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1000)
    np.testing.assert_equal(_rounded(all_of(Rows(matrix.shape, read))), expected)
    # Labels are ranked among all images.
    assert max(seen) < IMAGES or target.kind == "labels"


def _rounded(found: Any) -> Any:
    """Return what was found with its numbers to nine digits: sums in blocks are rounded otherwise."""
    if isinstance(found, dict):
        return {key: _rounded(each) for key, each in found.items()}
    if isinstance(found, list | tuple):
        return [_rounded(each) for each in found]
    return found if found is None or isinstance(found, str | bool) else np.round(np.asarray(found, np.float64), 9)


def test_a_score_that_is_undefined_is_0() -> None:
    """Reports hold no NaN."""
    assert Labels(["a", "b"]).score(np.zeros((3, 2)), np.array([[1, np.nan]] * 3, np.float32)) == 0
    assert Grades(["a", "b"]).score(np.ones((3, 1)), np.ones(3, np.int64)) == 0


def test_answers_are_right_or_wrong_about_each_group(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, _ = case
    images = target.strata(values).images
    sure = np.nan_to_num(20 * target.responses(values, np.empty(0)) - (target.link != "identity") * 10)
    sure /= 20 if target.link == "identity" else 1
    assert target.right(sure, values).shape == images.shape
    assert target.right(sure, values).all()
    assert not target.right(sure - 3 if target.link == "identity" else -sure, values).any()


def test_residual_quantiles_are_those_of_numbers_alone(case: tuple[Target, np.ndarray, np.ndarray]) -> None:
    target, values, outputs = case
    found = target.residual_quantiles(outputs, values)
    if target.link != "identity":
        assert found is None
        return
    residuals = (values - [50, -2]) / [10, 0.3] - outputs
    assert found is not None
    np.testing.assert_allclose(found, np.nanquantile(residuals, QUANTILES, axis=0).T, rtol=1e-5)
    values[:, 0] = np.nan
    assert target.residual_quantiles(outputs, values)[0] == [0.0] * 3  # type: ignore[index]
    assert np.isfinite(target.score(outputs, values))


# Figures.


def _ones(units: int) -> np.ndarray:
    return np.ones((1, units), np.float32)


def test_the_figures_of_labels_are_scikit_learn_s() -> None:
    target, values = Labels(["a", "b", "c", "d"]), _labels(unknown=0)
    outputs = np.round(_generator(7).normal(values * 1.5, 1), 1)  # with ties
    fitted = {"temperatures": [1.0] * 4, "thresholds": [0.4, 0.5, 0.6, 0.7]}
    probabilities = target.probabilities(outputs, fitted)
    tally = target.tally(outputs, values, np.arange(IMAGES), fitted)
    figures = {name: float(each[0]) for name, each in tally.figures(_ones(IMAGES)).items()}
    given = probabilities >= fitted["thresholds"]
    assert figures["mean_ap"] == pytest.approx(metrics.average_precision_score(values, probabilities, average="macro"))
    assert figures["auroc"] == pytest.approx(metrics.roc_auc_score(values, probabilities, average="macro"))
    assert figures["macro_f1"] == pytest.approx(metrics.f1_score(values, given, average="macro"))
    assert figures["micro_f1"] == pytest.approx(metrics.f1_score(values, given, average="micro"))
    assert figures["subset_accuracy"] == pytest.approx(metrics.accuracy_score(values, given))
    each = [metrics.log_loss(values[:, i], probabilities[:, i]) for i in range(4)]
    assert figures["log_loss"] == pytest.approx(np.mean(each))
    for i, row in enumerate(tally.per_part()):
        assert row["average_precision"] == pytest.approx(
            metrics.average_precision_score(values[:, i], probabilities[:, i]), abs=1e-6
        )
    # A redrawn test set is that of its images, each as often as it was drawn.
    times = _generator(9).integers(0, 4, (3, IMAGES)).astype(np.float32)
    redrawn = tally.figures(times)
    for i, row in enumerate(times.astype(int)):
        drawn = np.repeat(np.arange(IMAGES), row)
        alone = target.tally(outputs[drawn], values[drawn], np.arange(len(drawn)), fitted).figures(_ones(len(drawn)))
        for name, figure in alone.items():
            assert redrawn[name][i] == pytest.approx(float(figure[0])), name


def test_the_figures_of_numbers_are_scikit_learn_s_and_scipy_s() -> None:
    target = Numbers(["age"], ["years"], [50.0], [10.0])
    values = np.round(_generator(3).normal(50, 10, (IMAGES, 1))).astype(np.float32)
    outputs = np.round(_generator(7).normal((values - 50) / 10, 0.5), 1)
    said = target.points(outputs)
    np.testing.assert_allclose(said, outputs * 10 + 50)
    tally = target.tally(outputs, values, np.arange(IMAGES), {})
    figures = {name: float(each[0]) for name, each in tally.figures(_ones(IMAGES)).items()}
    assert figures["mae"] == pytest.approx(metrics.mean_absolute_error(values, said))
    assert figures["rmse"] == pytest.approx(metrics.root_mean_squared_error(values, said))
    assert figures["r2"] == pytest.approx(metrics.r2_score(values, said))
    assert figures["spearman"] == pytest.approx(stats.spearmanr(values[:, 0], said[:, 0]).statistic)
    times = _generator(9).integers(0, 4, (3, IMAGES)).astype(np.float32)
    redrawn = tally.figures(times)
    for i, row in enumerate(times.astype(int)):
        drawn = np.repeat(np.arange(IMAGES), row)
        alone = target.tally(outputs[drawn], values[drawn], np.arange(len(drawn)), {}).figures(_ones(len(drawn)))
        for name, figure in alone.items():
            assert redrawn[name][i] == pytest.approx(float(figure[0])), name


def test_unknown_numbers_are_in_no_figure() -> None:
    target, values = _plain_numbers(), _numbers()
    outputs = _generator(7).normal(size=(IMAGES, 2))
    rows = target.tally(outputs, values, np.arange(IMAGES), {}).per_part()
    for i, row in enumerate(rows):
        there = ~np.isnan(values[:, i])
        expected = metrics.mean_absolute_error(values[there, i], target.points(outputs)[there, i])
        assert row["mae"] == pytest.approx(expected, abs=1e-5)
        assert row["known"] == there.sum()


def test_the_figures_of_grades_are_scikit_learn_s() -> None:
    target, values = Grades(["0", "1", "2", "3"]), _generator(6).integers(0, 4, IMAGES)
    outputs = _generator(7).normal(values[:, None] - np.array([0.5, 1.5, 2.5]), 1)
    fitted = {"temperature": 1.0}
    predicted = target.predicted(outputs)
    tally = target.tally(outputs, values, np.arange(IMAGES), fitted)
    figures = {name: float(each[0]) for name, each in tally.figures(_ones(IMAGES)).items()}
    assert figures["kappa"] == pytest.approx(metrics.cohen_kappa_score(values, predicted, weights="quadratic"))
    assert figures["mae"] == pytest.approx(metrics.mean_absolute_error(values, predicted))
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(values, predicted))
    assert figures["macro_f1"] == pytest.approx(metrics.f1_score(values, predicted, average="macro"))
    assert figures["within_one"] == pytest.approx((abs(values - predicted) <= 1).mean())
    np.testing.assert_allclose(target.probabilities(outputs, fitted).sum(axis=1), 1)
    assert (target.probabilities(outputs, fitted) >= 0).all()


def test_thresholds_have_the_highest_f1() -> None:
    target, values = Labels(["a", "b", "c", "d"]), _labels(unknown=0)
    outputs = _generator(7).normal(values * 2, 1)
    fitted = target.fit(outputs, values)
    probabilities = target.probabilities(outputs, fitted)
    for i, threshold in enumerate(fitted["thresholds"]):
        best = metrics.f1_score(values[:, i], probabilities[:, i] >= threshold)
        assert best >= max(metrics.f1_score(values[:, i], probabilities[:, i] >= each) for each in probabilities[:, i])


# Conformal prediction: over many draws what is promised holds.


def _draw(target: Target, generator: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    hidden = generator.normal(size=images)
    match target.kind:
        case "labels":
            values = (hidden[:, None] + generator.normal(size=(images, 4)) > [0, 0.5, 1, -0.5]).astype(np.float32)
            return hidden[:, None] + generator.normal(0, 1, (images, 4)), values
        case "number":
            values = (hidden + generator.normal(0, 0.5 + (hidden > 0))).astype(np.float32)[:, None]
            quantiles = hidden[:, None] + np.linspace(-1, 1, max(1, target.outputs)) * 0.4
            return quantiles if target.outputs > 1 else hidden[:, None], values
    values = np.clip(np.round(hidden + generator.normal(0, 0.7, images) + 1.5), 0, 3).astype(np.int64)
    return 2 * (hidden[:, None] - np.array([-1.0, 0.0, 1.0])), values


@pytest.mark.parametrize(
    "target",
    [
        Labels(["a", "b", "c", "d"]),
        Numbers(["x"], [""], [0.0], [1.0]),
        Numbers(["x"], [""], [0.0], [1.0], QUANTILES),
        Grades(["0", "1", "2", "3"]),
    ],
    ids=["labels", "number", "quantiles", "grade"],
)
def test_coverage_over_500_draws_is_as_promised(target: Target) -> None:
    generator, covered = _generator(11), dict[float, list[float]]()
    for _ in range(500):
        levels = target.conformal(*_draw(target, generator, 100))
        outputs, values = _draw(target, generator, 200)
        for level, found in zip(levels, target.covered(outputs, values, levels), strict=True):
            covered.setdefault(level["level"], []).append(float(np.nanmean(found.share)))
    for promised, each in covered.items():
        error = np.std(each) / np.sqrt(len(each))
        assert np.mean(each) > promised - 3 * error
        assert np.mean(each) < promised + 0.02 + 3 * error  # of 100 images a level is a step of 0.01


def test_sets_of_grades_are_contiguous() -> None:
    target = Grades(["0", "1", "2", "3"])
    outputs = _generator(7).normal(0, 2, (500, 3))
    for limit in (0.0, 0.3, 0.9, None):
        sets = target.region(outputs, {"threshold": limit})
        assert ((np.diff(np.pad(sets.astype(int), ((0, 0), (1, 1)))) == 1).sum(axis=1) == 1).all()
