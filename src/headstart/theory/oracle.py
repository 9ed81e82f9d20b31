"""The classifier's head written by hand in NumPy, as on a lecture's board: the reference for the torch path.

``Loss = CE(f(X), Y) + Σ_l λ_l ‖W_l‖²``, ``f`` one affine map, or several with tanh between; biases are not penalised.
``X`` is (n, inputs), ``Y`` (n, classes) one-hot, ``W`` (inputs, outputs), a bias (outputs,); all parameters are one
list ``[W1, bias1, W2, bias2, ...]``. ``docs/mathematics.md`` derives the gradients.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CENTRAL_STEP = float(np.finfo(np.float64).eps ** (1 / 3))
"""Where the truncation error of a central difference, ~h², meets the rounding error of the loss, ~ε/h."""


def with_ones(inputs: Array) -> Array:
    """Return ``x = (…, 1)``, so that a bias is the weight of one more input that is always 1."""
    return np.column_stack([inputs, np.ones(len(inputs))])


def affine(inputs: Array, weight: Array, bias: Array) -> Array:
    """Return ``X·W + b``, (n, outputs), as one product."""
    return np.asarray(np.dot(with_ones(inputs), np.vstack([weight, bias])))


def log_softmax(logits: Array) -> Array:
    """Return ``z − log Σ_k exp z_k`` by row; the largest logit is taken off first, so that exp cannot overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def forward(parameters: Sequence[Array], inputs: Array) -> list[Array]:
    """Return each layer's input (n, inputs), ``X`` first, and at the end the logits (n, classes)."""
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    values = [inputs]
    for weight, bias in hidden:
        values.append(np.tanh(affine(values[-1], weight, bias)))
    return [*values, affine(values[-1], *last)]


def loss(parameters: Sequence[Array], inputs: Array, one_hot: Array, l2s: Sequence[float]) -> float:
    """Return the objective: the mean cross-entropy, and each layer's own λ on the sum of its squared weights."""
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
    """Return the parameters after steps of ``p ← p − τ ∂Loss/∂p``, τ the ``rate``."""
    moved = list(parameters)
    for _ in range(steps):
        by_parameter = gradients(moved, inputs, one_hot, l2s)
        moved = [p - rate * by_p for p, by_p in zip(moved, by_parameter, strict=True)]
    return moved


def central_differences(function: Callable[[Sequence[Array]], float], parameters: Sequence[Array]) -> list[Array]:
    """Estimate every ``∂f/∂p`` by ``(f(p + h e) − f(p − h e)) / 2h``, two losses an entry.

    ``h = CENTRAL_STEP · max(1, |p|)``: relative to large parameters, as their rounding is.
    """
    moved = [parameter.copy() for parameter in parameters]
    by_parameter = [np.empty_like(parameter) for parameter in parameters]
    for parameter, derivative in zip(moved, by_parameter, strict=True):
        for place, p in np.ndenumerate(parameter):
            h = CENTRAL_STEP * max(1.0, abs(p))
            parameter[place] = p + h
            above = function(moved)
            parameter[place] = p - h
            derivative[place] = (above - function(moved)) / ((p + h) - (p - h))  # 2h, as it was rounded
            parameter[place] = p
    return by_parameter
