"""Functions that NumPy's arrays and torch's both pass through, by the array API standard; torch's with gradients."""

from typing import Any

from array_api_compat import array_namespace

Array = Any
"""NumPy's or torch's."""


def log_softmax(outputs: Array) -> Array:
    """Return the logarithms of the probabilities of classes, (n, classes) both."""
    xp = array_namespace(outputs)
    shifted = outputs - xp.max(outputs, axis=1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))


def softplus(outputs: Array) -> Array:
    """Return log(1 + exp(x)), of any size of x."""
    xp = array_namespace(outputs)
    return xp.clip(outputs, 0, None) + xp.log1p(xp.exp(-xp.abs(outputs)))


def sigmoid(outputs: Array) -> Array:
    """Return 1 / (1 + exp(-x)), of any size of x."""
    xp = array_namespace(outputs)
    small = xp.exp(-xp.abs(outputs))
    return xp.where(outputs >= 0, 1 / (1 + small), small / (1 + small))


def known(values: Array) -> tuple[Array, Array]:
    """Return values with 0 for what is unknown (NaN), and 1 where a value is known, of the values' type."""
    xp = array_namespace(values)
    unknown = xp.isnan(values)
    return xp.where(unknown, xp.zeros_like(values), values), xp.astype(~unknown, values.dtype)
