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
from headstart.theory.oracle import (
    CENTRAL_STEP,
    affine,
    central_differences,
    descend,
    forward,
    gradients,
    log_softmax,
    loss,
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
