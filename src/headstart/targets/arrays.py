"""Functions that NumPy's arrays and torch's both pass through, by the array API standard; torch's with gradients.

predict has NumPy alone: what is asked of it here is in its oldest supported version too.
"""

from typing import Any

import numpy as np

Array = Any
"""NumPy's or torch's."""


def namespace(array: Array) -> Any:
    """Return NumPy, or what torch has as NumPy has it."""
    if isinstance(array, np.ndarray):
        return np
    from array_api_compat import array_namespace  # noqa: PLC0415  (predict does without)

    return array_namespace(array)


def cast(array: Array, like: Array) -> Array:
    """Return an array in the type of another one."""
    if isinstance(array, np.ndarray):
        return array.astype(like.dtype)
    return namespace(array).astype(array, like.dtype)


def constants(numbers: Any, like: Array) -> Array:
    """Return numbers as an array of the kind, type and device of another one."""
    if isinstance(like, np.ndarray):
        return np.asarray(numbers, like.dtype)
    return namespace(like).asarray(numbers, dtype=like.dtype, device=like.device)


def log_softmax(outputs: Array) -> Array:
    """Return the logarithms of the probabilities of classes, (n, classes) both."""
    if not isinstance(outputs, np.ndarray):
        return namespace(outputs).log_softmax(outputs, 1)  # torch's own: to the bit what its cross-entropy has
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softplus(outputs: Array) -> Array:
    """Return log(1 + exp(x)), of any size of x."""
    if not isinstance(outputs, np.ndarray):
        xp = namespace(outputs)
        return xp.logaddexp(outputs, xp.zeros_like(outputs))  # of the right gradient at 0 too
    return np.clip(outputs, 0, None) + np.log1p(np.exp(-np.abs(outputs)))


def sigmoid(outputs: Array) -> Array:
    """Return 1 / (1 + exp(-x)), of any size of x."""
    if not isinstance(outputs, np.ndarray):
        return namespace(outputs).sigmoid(outputs)  # torch's own, beside the standard: of the right gradient at 0 too
    small = np.exp(-np.abs(outputs))
    return np.where(outputs >= 0, 1 / (1 + small), small / (1 + small))


def mean_logits(outputs: Array, others: Array) -> Array:
    """Return the logits of the mean of two probabilities, NumPy's arrays all."""
    present, absent = (np.logaddexp(-softplus(sign * outputs), -softplus(sign * others)) for sign in (-1, 1))
    return present - absent


def known(values: Array) -> tuple[Array, Array]:
    """Return values with 0 for what is unknown (NaN), and 1 where a value is known, of the values' type."""
    xp = namespace(values)
    unknown = xp.isnan(values)
    return xp.where(unknown, xp.zeros_like(values), values), cast(~unknown, values)
