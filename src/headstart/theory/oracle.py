"""The classifier's head written out in NumPy: the reference that the torch code is tested against.

``Loss = CE(f(X), Y) + Σ_l λ_l ‖W_l‖²``: the mean cross-entropy over the rows, and each layer's own λ times the sum of
its squared weights; biases are not penalised. ``f`` is one affine map, or several with tanh between. A row of ``X`` (n,
inputs) is an image, ``W`` is (inputs, outputs), and all parameters are one list ``[W1, bias1, W2, bias2, ...]``.
``docs/mathematics.md`` derives the gradients.
"""

from collections.abc import Callable, Sequence

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


def loss(parameters: Sequence[Array], inputs: Array, one_hot: Array, l2s: Sequence[float]) -> float:
    """Return the objective.

    Args:
        parameters: ``[W1, bias1, W2, bias2, ...]``, of shapes (inputs, outputs) and (outputs,).
        inputs: ``X``, (n, inputs).
        one_hot: ``Y``, (n, classes), each row a 1 among zeros.
        l2s: each layer's λ.
    """
    cross_entropy = -(one_hot * log_softmax(forward(parameters, inputs)[-1])).sum() / len(inputs)
    return float(cross_entropy + sum(l2 * (weight**2).sum() for l2, weight in zip(l2s, parameters[::2], strict=True)))


def gradients(parameters: Sequence[Array], inputs: Array, one_hot: Array, l2s: Sequence[float]) -> list[Array]:
    """Return ``∂Loss/∂p`` of every parameter, in their order and shapes, by the chain rule from the last layer back."""
    *layer_inputs, logits = forward(parameters, inputs)
    by_output = (np.exp(log_softmax(logits)) - one_hot) / len(inputs)  # (P − Y)/n
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
