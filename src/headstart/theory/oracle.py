"""The head and the losses of all targets written out in NumPy: the reference that the torch code is tested against.

``Loss = L(f(X), Y) + Σ_l λ_l ‖W_l‖²``: the mean loss over the rows, the cross-entropy or another ``OutputLoss``, and
each layer's own λ times the sum of its squared weights; biases are not penalised. ``f`` is one affine map, or several
with tanh between. A row of ``X`` (n, inputs) is an image, ``W`` is (inputs, outputs), and all parameters are one list
``[W1, bias1, W2, bias2, ...]``. ``docs/mathematics.md`` derives the gradients.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CENTRAL_STEP = float(np.finfo(np.float64).eps ** (1 / 3))
"""The step h at which the truncation error of a central difference, ~h², equals the rounding error, ~ε/h."""


def with_ones(inputs: Array) -> Array:
    """Return ``x = (…, 1)``, so that a bias is the weight of one more input that is always 1."""
    return np.column_stack([inputs, np.ones(len(inputs))])


def affine(inputs: Array, weight: Array, bias: Array) -> Array:
    """Return ``X·W + b``, (n, outputs), as one product."""
    return np.asarray(np.dot(with_ones(inputs), np.vstack([weight, bias])))


def log_softmax(logits: Array) -> Array:
    """Return ``z − log Σ_k exp z_k`` by row; the largest logit is subtracted first, so that exp cannot overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def forward(parameters: Sequence[Array], inputs: Array) -> list[Array]:
    """Return each layer's input, (n, its inputs), ``inputs`` first, and last the logits (n, classes)."""
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    values = [inputs]
    for weight, bias in hidden:
        values.append(np.tanh(affine(values[-1], weight, bias)))
    return [*values, affine(values[-1], *last)]


class OutputLoss(NamedTuple):
    """A loss of each row, (n,), and its gradient by the outputs Z, (n, outputs); both are functions of Z and Y."""

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]


def _known(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Return Y with Z for what is unknown (NaN), and 1 where it is known."""
    unknown = np.isnan(targets)
    return np.where(unknown, outputs, targets), 1.0 - unknown


def _sigmoid(outputs: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -outputs)))


def _binary(outputs: Array, targets: Array) -> Array:
    there, known = _known(outputs, targets)
    return np.asarray(((np.logaddexp(0, outputs) - there * outputs) * known).sum(axis=1))


def _by_binary(outputs: Array, targets: Array) -> Array:
    there, known = _known(outputs, targets)
    return np.asarray((_sigmoid(outputs) - there) * known)


def _huber(outputs: Array, targets: Array) -> Array:
    errors = np.abs(outputs - _known(outputs, targets)[0])
    return np.asarray(np.where(errors <= 1, errors**2, 2 * errors - 1).sum(axis=1))


CROSS_ENTROPY = OutputLoss(
    lambda outputs, one_hot: -(one_hot * log_softmax(outputs)).sum(axis=1),
    lambda outputs, one_hot: np.exp(log_softmax(outputs)) - one_hot,
)
BINARY = OutputLoss(_binary, _by_binary)
"""Of labels, Y 1, 0 or NaN if unknown. Of grades too: Y is 1 for each grade that a row is above, and W is ``tied``."""
SQUARED = OutputLoss(
    lambda outputs, targets: ((outputs - _known(outputs, targets)[0]) ** 2).sum(axis=1),
    lambda outputs, targets: 2 * (outputs - _known(outputs, targets)[0]),
)
HUBER = OutputLoss(_huber, lambda outputs, targets: 2 * np.clip(outputs - _known(outputs, targets)[0], -1, 1))
"""The square up to 1, and its tangent from there on."""


def pinball(levels: Sequence[float]) -> OutputLoss:
    """Return the loss that quantiles minimise; Z and Y have a column for each of the levels, Y's are equal."""
    q = np.array(levels)

    def value(outputs: Array, targets: Array) -> Array:
        above = targets - outputs
        return np.asarray(np.where(above > 0, q * above, (q - 1) * above).sum(axis=1))

    return OutputLoss(value, lambda outputs, targets: np.where(targets > outputs, -q, 1 - q))


def tied(by_weight: Array) -> Array:
    """Return the gradient by a weight whose columns stay equal, (inputs, outputs): the nearest with equal columns."""
    return np.tile(by_weight.mean(axis=1, keepdims=True), by_weight.shape[1])


def loss(
    parameters: Sequence[Array], inputs: Array, targets: Array, l2s: Sequence[float], of: OutputLoss = CROSS_ENTROPY
) -> float:
    """Return the objective.

    Args:
        parameters: ``[W1, bias1, W2, bias2, ...]``, of shapes (inputs, outputs) and (outputs,).
        inputs: ``X``, (n, inputs).
        targets: ``Y``, (n, outputs); of classes, each row a 1 among zeros.
        l2s: each layer's λ.
        of: the loss of a row.
    """
    mean = of.value(forward(parameters, inputs)[-1], targets).sum() / len(inputs)
    return float(mean + sum(l2 * (weight**2).sum() for l2, weight in zip(l2s, parameters[::2], strict=True)))


def gradients(
    parameters: Sequence[Array], inputs: Array, targets: Array, l2s: Sequence[float], of: OutputLoss = CROSS_ENTROPY
) -> list[Array]:
    """Return ``∂Loss/∂p`` of every parameter, in their order and shapes, by the chain rule from the last layer back."""
    *layer_inputs, outputs = forward(parameters, inputs)
    by_output = of.gradient(outputs, targets) / len(inputs)  # G; of the cross-entropy (P − Y)/n
    by_parameter: list[Array] = []
    for weight, l2, value in reversed(list(zip(parameters[::2], l2s, layer_inputs, strict=True))):
        by_affine = np.dot(with_ones(value).T, by_output)  # Xᵀ·G; its last row is the bias's
        by_parameter = [by_affine[:-1] + 2 * l2 * weight, by_affine[-1], *by_parameter]
        by_output = np.tensordot(by_output, weight.T, 1) * (1 - value**2)  # G·Wᵀ, and through the tanh below, if any
    return by_parameter


def descend(
    parameters: Sequence[Array], inputs: Array, one_hot: Array, l2s: Sequence[float], *, rate: float, steps: int = 1
) -> list[Array]:
    """Run gradient descent steps ``p ← p − τ ∂Loss/∂p``, τ the ``rate``, and return the parameters."""
    moved = list(parameters)
    for _ in range(steps):
        by_parameter = gradients(moved, inputs, one_hot, l2s)
        moved = [p - rate * by_p for p, by_p in zip(moved, by_parameter, strict=True)]
    return moved


def central_differences(
    function: Callable[[Sequence[Array]], float], parameters: Sequence[Array], step: float = CENTRAL_STEP
) -> list[Array]:
    """Estimate every ``∂f/∂p`` by ``(f(p + h e) − f(p − h e)) / 2h``, ``h = step · max(1, |p|)``.

    The step is relative for large parameters, as their rounding is. The function is computed twice for each entry.
    """
    by_parameter = [np.empty_like(parameter) for parameter in parameters]
    for i, parameter in enumerate(parameters):
        for place, p in np.ndenumerate(parameter):
            values, ends = [], []
            for sign in (1, -1):
                moved = parameter.copy()
                moved[place] = p + sign * step * max(1.0, abs(p))
                ends.append(moved[place])
                values.append(function([*parameters[:i], moved, *parameters[i + 1 :]]))
            by_parameter[i][place] = (values[0] - values[1]) / (ends[0] - ends[1])  # 2h, as it was rounded
    return by_parameter
