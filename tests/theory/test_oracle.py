"""The oracle against its own algebra, differences, torch, and the λ path's minimum."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from headstart.probe.logistic import linear_path
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import QUANTILES, Numbers
from headstart.targets.target import LossOptions, Target
from headstart.theory.oracle import (
    BINARY,
    CENTRAL_STEP,
    HUBER,
    SQUARED,
    OutputLoss,
    affine,
    central_differences,
    descend,
    forward,
    gradients,
    log_softmax,
    loss,
    pinball,
    tied,
    with_ones,
)

Array = NDArray[np.float64]
Problem = tuple[list[Array], Array, Array, list[float]]
INPUTS, CLASSES, COUNT = 7, 4, 30
TARGET = Classes("abcd")
SIZES = {"one layer": (INPUTS, CLASSES), "two layers": (INPUTS, 5, CLASSES)}


@pytest.fixture(params=list(SIZES.values()), ids=list(SIZES))
def problem(request: pytest.FixtureRequest) -> Problem:
    """Parameters, X, one-hot Y and a λ a layer, each its own."""
    sizes: tuple[int, ...] = request.param
    generator = np.random.default_rng(len(sizes))
    shapes = [shape for i, out in enumerate(sizes[1:]) for shape in ((sizes[i], out), (out,))]
    parameters = [generator.normal(size=shape) for shape in shapes]
    inputs = generator.normal(size=(COUNT, INPUTS)) + 1
    one_hot = np.eye(CLASSES)[generator.integers(CLASSES, size=COUNT)]
    return parameters, inputs, one_hot, [3e-2, 1e-1][: len(sizes) - 1]


def torch_loss(leaves: Sequence[torch.Tensor], inputs: Array, one_hot: Array) -> torch.Tensor:
    """The cross-entropy alone, by torch's own affine maps."""
    value, layers = torch.tensor(inputs), len(leaves) // 2
    for i in range(layers):
        value = torch.nn.functional.linear(value, leaves[2 * i].T, leaves[2 * i + 1])
        value = torch.tanh(value) if i + 1 < layers else value
    return cross_entropy(value, torch.tensor(one_hot.argmax(1)))


def torch_objective(
    leaves: Sequence[torch.Tensor], inputs: Array, one_hot: Array, l2s: Sequence[float]
) -> torch.Tensor:
    penalty = sum(l2 * weight.square().sum() for l2, weight in zip(l2s, leaves[::2], strict=True))
    return torch_loss(leaves, inputs, one_hot) + penalty


def leaves_of(parameters: Sequence[Array]) -> list[torch.Tensor]:
    return [torch.tensor(parameter, requires_grad=True) for parameter in parameters]


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_products_of_the_board() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 4)), generator.normal(size=(4, 5))
    assert np.tensordot(a, b, 1) == pytest.approx(a @ b, rel=1e-14)
    assert np.dot(a, b) == pytest.approx(a @ b, rel=1e-14)
    c = generator.normal(size=(4, 6))
    assert np.transpose(c.T @ b) == pytest.approx(b.T @ c, rel=1e-14)


def test_the_bias_is_the_weight_of_an_input_that_is_always_one() -> None:
    inputs, weight, bias = (
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]),
        np.arange(3),
    )
    assert with_ones(inputs).tolist() == [[1, 2, 1], [3, 4, 1]]
    assert affine(inputs, weight, bias.astype(float)).tolist() == (inputs @ weight + bias).tolist()


def test_the_derivative_of_a_product_by_indices() -> None:
    """∂(XW)_ij/∂W_lm = X_il δ_jm and ∂(xA)_j/∂x_i = A_ij: all of the chain rule of an affine map."""
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(3, 4)), generator.normal(size=(4, 2))
    by_weight = torch.func.jacrev(lambda w: torch.tensor(x) @ w)(torch.tensor(w)).numpy()
    assert by_weight == pytest.approx(np.einsum("il,jm->ijlm", x, np.eye(2)))
    by_input = torch.func.jacrev(lambda x: x @ torch.tensor(w))(torch.tensor(x[0])).numpy()
    assert by_input == pytest.approx(w.T)


def test_log_softmax_is_a_distribution_and_survives_huge_logits() -> None:
    logits = np.array([[0.0, np.log(3)], [1e4, -1e4], [-1e4, -1e4]])
    assert np.exp(log_softmax(logits)) == pytest.approx(np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]]))
    assert log_softmax(logits)[1, 1] == -2e4


def test_the_loss_by_hand() -> None:
    """Two images, zero weights but for one: CE = log 2 where the logits are equal, and only W is penalised."""
    weight, bias = np.array([[2.0, 0.0]]), np.array([0.0, 0.0])
    inputs, one_hot = np.array([[0.0], [0.0]]), np.eye(2)
    assert loss([weight, bias], inputs, one_hot, [0.5]) == pytest.approx(np.log(2) + 0.5 * 4)
    assert loss([weight, bias + 100], inputs, one_hot, [0.5]) == pytest.approx(np.log(2) + 0.5 * 4)


def test_torch_computes_the_same_loss_and_gradients(problem: Problem) -> None:
    parameters, inputs, one_hot, l2s = problem
    leaves = leaves_of(parameters)
    objective = torch_objective(leaves, inputs, one_hot, l2s)
    assert loss(parameters, inputs, one_hot, l2s) == pytest.approx(objective.item(), rel=1e-12)
    for found, expected in zip(
        gradients(parameters, inputs, one_hot, l2s), torch.autograd.grad(objective, leaves), strict=True
    ):
        assert found.shape == tuple(expected.shape)
        assert found == pytest.approx(expected.numpy(), rel=1e-10, abs=1e-12)


def test_central_differences_agree_with_both(problem: Problem) -> None:
    parameters, inputs, one_hot, l2s = problem
    estimated = central_differences(lambda moved: loss(moved, inputs, one_hot, l2s), parameters)
    leaves = leaves_of(parameters)
    by_torch = torch.autograd.grad(torch_objective(leaves, inputs, one_hot, l2s), leaves)
    for guess, by_hand, leaf in zip(estimated, gradients(parameters, inputs, one_hot, l2s), by_torch, strict=True):
        assert relative(guess, by_hand) < 1e-8
        assert relative(guess, leaf.numpy()) < 1e-8


def test_a_central_difference_is_exact_for_a_parabola_and_its_step_grows_with_the_parameter() -> None:
    seen: list[float] = []

    def square(parameters: Sequence[Array]) -> float:
        seen.append(float(parameters[0][0]))
        return float(parameters[0][0] ** 2)

    for p in (0.0, 1e-3, 1e8):
        seen.clear()
        (slope,) = central_differences(square, [np.array([p])])
        assert slope[0] == pytest.approx(2 * p, rel=1e-8, abs=1e-9)
        assert np.ptp(seen) == pytest.approx(2 * CENTRAL_STEP * max(1, p), rel=1e-8)


def test_ten_steps_are_torchs_sgd_with_twice_lambda_as_weight_decay(problem: Problem) -> None:
    parameters, inputs, one_hot, l2s = problem
    leaves = leaves_of(parameters)
    groups: list[dict[str, Any]] = [{"params": leaves[1::2]}]
    groups += [{"params": [weight], "weight_decay": 2 * l2} for l2, weight in zip(l2s, leaves[::2], strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.3)
    for _ in range(10):
        optimizer.zero_grad()
        torch_loss(leaves, inputs, one_hot).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moved = descend(parameters, inputs, one_hot, l2s, rate=0.3, steps=10)
    for found, start, expected in zip(moved, parameters, leaves, strict=True):
        assert found == pytest.approx(expected.detach().numpy(), rel=1e-10, abs=1e-10)
        assert np.abs(found - start).max() > 0.1


def test_the_descent_lowers_the_loss_and_leaves_its_start_alone(problem: Problem) -> None:
    parameters, inputs, one_hot, l2s = problem
    kept = [parameter.copy() for parameter in parameters]
    moved = descend(parameters, inputs, one_hot, l2s, rate=0.1, steps=50)
    assert loss(moved, inputs, one_hot, l2s) < 0.8 * loss(parameters, inputs, one_hot, l2s)
    assert all((before == after).all() for before, after in zip(kept, parameters, strict=True))


def test_the_probes_minimum_is_the_oracles() -> None:
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(200, INPUTS)) + 2, np.arange(200) % CLASSES
    inputs[:, :CLASSES] += np.eye(CLASSES)[labels]
    one_hot = np.eye(CLASSES)[labels]
    for l2, weight, bias in linear_path(inputs, labels, TARGET, [1.0, 1e-2, 1e-4]):
        for by_parameter in gradients([weight.T, bias], inputs, one_hot, [l2]):
            assert np.abs(by_parameter).max() < 1e-5
        for by_parameter in gradients([1.1 * weight.T, bias + 0.1 * np.eye(CLASSES)[0]], inputs, one_hot, [l2]):
            assert np.abs(by_parameter).max() > 1e-3


def test_the_layers_read_what_the_one_before_gave() -> None:
    inputs = np.array([[0.5]])
    first, last = [np.array([[2.0]]), np.array([-1.0])], [np.array([[3.0, 0.0]]), np.array([0.0, 1.0])]
    read = forward([*first, *last], inputs)
    assert [value.tolist() for value in read] == [[[0.5]], [[0.0]], [[0.0, 1.0]]]


NUMBERS = Numbers(["a", "b"], ["", ""], [1.0, -2.0], [2.0, 0.5])
LOSSES: dict[str, tuple[OutputLoss, Target, LossOptions]] = {
    "labels": (BINARY, Labels(["a", "b", "c"]), LossOptions()),
    "squared": (SQUARED, NUMBERS, LossOptions()),
    "huber": (HUBER, NUMBERS, LossOptions("huber")),
    "pinball": (pinball(QUANTILES), Numbers(["a"], [""], [1.0], [2.0], QUANTILES), LossOptions("quantile")),
    "grades": (BINARY, Grades(["none", "mild", "bad", "worst"]), LossOptions()),
}


def values_of(target: Target) -> NDArray[Any]:
    generator = np.random.default_rng(3)
    if target.kind == "grade":
        return generator.integers(0, 4, COUNT)
    values = generator.normal(size=(COUNT, len(target.names))) if target.kind == "number" else None
    values = generator.integers(0, 2, (COUNT, 3)).astype(float) if values is None else 3 * values
    if not (target.kind == "number" and len(target.names) == 1):
        values[generator.random(values.shape) < 0.2] = np.nan
    return values.astype(np.float32)


def responses_of(target: Target, values: NDArray[Any]) -> Array:
    """Y as the oracle has it; of quantiles a column for each."""
    if target.kind == "number" and target.outputs > len(target.names):
        return np.repeat((values.astype(np.float64) - 1) / 2, target.outputs, axis=1)
    return np.asarray(target.responses(values, np.empty(0)))


@pytest.fixture(params=LOSSES)
def other(request: pytest.FixtureRequest) -> tuple[OutputLoss, Target, LossOptions]:
    return LOSSES[request.param]


@pytest.mark.parametrize("hidden", [(), (5,)], ids=["one layer", "two layers"])
def test_the_gradients_of_other_losses_are_their_differences_and_torchs_of_the_target(
    other: tuple[OutputLoss, Target, LossOptions], hidden: tuple[int, ...]
) -> None:
    """The target's loss is what trains; the oracle's is written out by hand."""
    of, target, options = other
    generator, sizes = np.random.default_rng(1), (INPUTS, *hidden, target.outputs)
    shapes = [shape for i, out in enumerate(sizes[1:]) for shape in ((sizes[i], out), (out,))]
    parameters, inputs = [generator.normal(size=shape) for shape in shapes], generator.normal(size=(COUNT, INPUTS))
    values, l2s = values_of(target), [3e-2, 1e-1][: len(sizes) - 1]
    targets = responses_of(target, values)
    by_hand = gradients(parameters, inputs, targets, l2s, of)
    estimated = central_differences(lambda moved: loss(moved, inputs, targets, l2s, of), parameters)
    leaves = leaves_of(parameters)
    value = torch.tensor(inputs)
    for i in range(0, len(leaves), 2):
        value = (torch.tanh(value) if i else value) @ leaves[i] + leaves[i + 1]
    penalty = sum(l2 * weight.square().sum() for l2, weight in zip(l2s, leaves[::2], strict=True))
    objective = target.losses(value, torch.tensor(values), options).mean() + penalty
    assert loss(parameters, inputs, targets, l2s, of) == pytest.approx(objective.item(), rel=1e-10)
    for found, guess, exact in zip(by_hand, estimated, torch.autograd.grad(objective, leaves), strict=True):
        assert relative(guess, found) < 1e-7
        assert relative(found, exact.numpy()) < 1e-10


def test_the_gradient_of_equal_columns_is_that_of_the_one_they_are() -> None:
    """‖W‖² counts each column: by one vector w that all outputs share, the derivative is their sum."""
    target = Grades(["none", "mild", "bad", "worst"])
    generator = np.random.default_rng(1)
    inputs, shared, bias = (
        generator.normal(size=(COUNT, INPUTS)),
        generator.normal(size=(INPUTS, 1)),
        np.array([2.0, 0, -2]),
    )
    targets = responses_of(target, values_of(target))

    def of_shared(parameters: Sequence[Array]) -> float:
        return loss([np.tile(parameters[0], 3), parameters[1]], inputs, targets, [0.1], BINARY)

    by_shared, by_bias = central_differences(of_shared, [shared, bias])
    by_hand = gradients([np.tile(shared, 3), bias], inputs, targets, [0.1], BINARY)
    assert relative(3 * tied(by_hand[0])[:, :1], by_shared) < 1e-8
    assert relative(by_hand[1], by_bias) < 1e-8
    assert np.ptp(tied(by_hand[0]), axis=1) == pytest.approx(0)


@pytest.mark.parametrize("name", ["labels", "squared", "grades"])
def test_the_probes_minimum_of_every_target_is_the_oracles(name: str) -> None:
    of, target, _ = LOSSES[name]
    inputs, values = np.random.default_rng(1).normal(size=(COUNT, INPUTS)) + 2, values_of(target)
    targets = responses_of(target, values)
    for l2, weight, bias in linear_path(inputs, values, target, [1.0, 1e-2]):
        by_weight, by_bias = gradients([weight.T, bias], inputs, targets, [l2], of)
        by_weight = tied(by_weight) if target.tied else by_weight
        assert np.abs(by_weight).max() < 1e-5
        assert np.abs(by_bias).max() < 1e-5
        assert np.abs(gradients([1.1 * weight.T, bias + 0.1], inputs, targets, [l2], of)[0]).max() > 1e-3
