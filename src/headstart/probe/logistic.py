"""Linear heads on fixed features along a path of λ: multinomial logistic regression, and ridge on one-hot targets.

Logistic regression minimises ``1/n Σ_i CE(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: the objective of
fine-tuning's head. scikit-learn's ``LogisticRegression`` minimises ``C Σ_i CE_i + ½ ‖W‖²``, the same with
``C = 1 / (2 λ n)``. For two classes it has one row of weights, the difference of the two rows here, each of which is
± half of it; so there ``C = 1 / (λ n)``.

The solver is Newton's method with conjugate gradients (Nocedal and Wright 2006, "Numerical Optimization", algorithm
7.1), in coordinates whose curvature is near 1. By Böhning 1992, "Multinomial logistic regression algorithm", the
Hessian of the cross-entropy is at most ``½ (I - 11ᵀ/C) ⊗ XᵀX/n`` (C the number of classes). The bound's factor for the
features is diagonal in their principal axes, which are computed once for all λ. Its ½ is an upper bound of p(1 - p)
and is replaced by each class's mean of p(1 - p), which is far smaller for a rare class or one of many.

It runs where the features are: NumPy's on the CPU, torch's on their device. Beside them it keeps one float32 copy, and
a float32 for each image and class; what is float64 is computed from some thousand images at a time.

Ridge minimises ``1/n ‖XWᵀ + b - Y‖² + λ ‖W‖²``, Y the one-hot labels: one solution in the principal axes for each λ.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

MAX_NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-9
"""The decrease predicted for the last Newton step, relative to the objective; what remains after it is far smaller."""
CG_TOLERANCE = 0.1
"""The residual's norm in a Newton step, relative; a smaller one costs more than the Newton steps that it saves."""
MAX_CG_ITERATIONS = 500
MAX_HALVINGS = 40
MIN_CURVATURE = 1e-12
BLOCK_VALUES = 2**24
"""Values of the features, or of the logits, that are float64 at once."""

Array = Any
"""NumPy's or torch's: both have what the array API standard lists."""
Matrix = NDArray[np.float64]

logger = logging.getLogger(__name__)


def logistic_path(
    features: Array,
    labels: Array,
    classes: int,
    l2s: Sequence[float],
    *,
    start: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    tolerance: float = NEWTON_TOLERANCE,
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised cross-entropy at each λ, from the largest to the smallest, each from the one before.

    Where rounding or MAX_NEWTON_STEPS keeps the minimum out of reach, a warning is logged and the last point yielded.

    Args:
        features: float (n, width), NumPy's or torch's.
        labels: int64 (n,) in 0 .. classes-1, of the same kind and device.
        classes: number of them.
        l2s: the values of λ, above 0, in any order.
        start: W and b to begin from; none: zeros.
        tolerance: how little of the objective the last step has to promise, relative to it.

    Yields:
        λ, W float64 (classes, width), b float64 (classes,).
    """
    objective = _Objective(features, labels, classes)
    head = objective.zeros() if start is None else objective.in_axes(*start)
    for l2 in sorted(l2s, reverse=True):
        head = _minimise(objective, head, l2, tolerance)
        yield l2, *objective.of_features(head)


def principal_axes(features: Array) -> tuple[Array, Array, Array]:
    """Decompose the covariance of features, float (n, width).

    Returns:
        All float64: the mean (width,), the variances along the principal axes (width,), ascending, and the axes
        (width, width), one in each column.
    """
    xp, count = array_namespace(features), len(features)
    mean = sum(xp.sum(block, axis=0) for _, block in _blocks(features)) / count
    covariance = sum((block - mean).T @ (block - mean) for _, block in _blocks(features)) / count
    variances, axes = xp.linalg.eigh(covariance)
    return mean, xp.clip(variances, 0, None), axes


def _blocks(features: Array, values: int = 0) -> Iterator[tuple[slice, Array]]:
    """Yield slices of the images with their features in float64; ``values`` are what else each image has."""
    xp, size = array_namespace(features), max(1, BLOCK_VALUES // max(1, values, features.shape[1]))
    for begin in range(0, len(features), size):
        rows = slice(begin, min(begin + size, len(features)))
        yield rows, xp.astype(features[rows], xp.float64)


class _Objective:
    """The objective of a head (classes, width + 1) in the principal axes; its last column is the bias.

    Values and gradients are float64, and so is the minimum. Products with the Hessian take most of the time and only
    give the direction: they are float32 until rounding makes a step fail, and float64 from then on.
    """

    def __init__(self, features: Array, labels: Array, classes: int) -> None:
        self.xp, self.features, self.labels, self.classes = array_namespace(features), features, labels, classes
        self.mean, variances, self.axes = principal_axes(features)
        one = self.xp.ones(1, dtype=self.xp.float64, device=device(features))
        self.variances = self.xp.concat([variances, one])
        self.penalised = self.xp.concat([self.xp.ones_like(variances), 0 * one])
        self._keep(self.xp.float32)

    def _keep(self, dtype: Any) -> None:
        """Keep what products with the Hessian need, in this type."""
        xp, count, like = self.xp, len(self.features), {"dtype": dtype, "device": device(self.features)}
        self.dtype, self.inputs = dtype, xp.ones((count, len(self.variances)), **like)
        self.probabilities = xp.zeros((count, self.classes), **like)
        for rows, block in _blocks(self.features):
            self.inputs[rows, :-1] = xp.astype((block - self.mean) @ self.axes, dtype)

    def zeros(self) -> Array:
        """Return the head that says nothing."""
        shape = self.classes, len(self.variances)
        return self.xp.zeros(shape, dtype=self.xp.float64, device=device(self.features))

    def in_axes(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> Array:
        """Return the head of a weight and a bias for the features as they are."""
        xp, like = self.xp, {"dtype": self.xp.float64, "device": device(self.features)}
        by_feature, offset = xp.asarray(weight, **like), xp.asarray(bias, **like)
        return xp.concat([by_feature @ self.axes, (offset + by_feature @ self.mean)[:, None]], axis=1)

    def of_features(self, head: Array) -> tuple[Matrix, Matrix]:
        """Return the weight and bias of a head for the features as they are."""
        weight = head[:, :-1] @ self.axes.T
        bias = head[:, -1] - weight @ self.mean
        if isinstance(weight, np.ndarray):
            return weight, bias
        return weight.cpu().numpy(), bias.cpu().numpy()

    def evaluate(self, head: Array, l2: float) -> tuple[float, Array]:
        """Return the objective and its gradient; the probabilities are kept for ``newton_step``."""
        xp, count = self.xp, len(self.features)
        weight, bias = head[:, :-1] @ self.axes.T, head[:, -1]
        loss, gradient = 0.0, self.zeros()
        total, squares = xp.zeros_like(bias), xp.zeros_like(bias)
        for rows, block in _blocks(self.features, self.classes):
            inputs, labels = block - self.mean, self.labels[rows][:, None]
            logits = inputs @ weight.T + bias
            logits -= xp.max(logits, axis=1, keepdims=True)
            picked = xp.take_along_axis(logits, labels, axis=1)
            probabilities = xp.exp(logits)
            totals = xp.sum(probabilities, axis=1, keepdims=True)
            probabilities /= totals
            loss += float(xp.sum(xp.log(totals) - picked))
            self.probabilities[rows] = xp.astype(probabilities, self.dtype)
            total += xp.sum(probabilities, axis=0)
            squares += xp.sum(probabilities**2, axis=0)
            probabilities[xp.arange(len(labels)), labels[:, 0]] -= 1
            gradient[:, :-1] += probabilities.T @ inputs
            gradient[:, -1] += xp.sum(probabilities, axis=0)
        gradient[:, :-1] = gradient[:, :-1] @ self.axes
        self.variance = (total - squares) / count
        value = loss / count + l2 * float(xp.sum(head**2 * self.penalised))
        return value, gradient / count + 2 * l2 * self.penalised * head

    def newton_step(self, head: Array, gradient: Array, l2: float) -> tuple[Array, bool]:
        """Solve ``Hessian · step = -gradient`` at the head evaluated last; return the step and whether CG converged."""
        xp, dtype, count = self.xp, self.dtype, len(self.features)
        curvature = self.variance[:, None] * self.variances + 2 * l2 * self.penalised
        exact_scale = 1 / xp.sqrt(xp.clip(curvature, MIN_CURVATURE, None))
        scale, penalty = xp.astype(exact_scale, dtype), xp.astype(2 * l2 * self.penalised, dtype)
        size = max(1, BLOCK_VALUES // max(gradient.shape))

        def product(direction: Array) -> Array:
            change = direction * scale
            by_head = xp.zeros_like(change)
            for begin in range(0, count, size):
                inputs, probabilities = self.inputs[begin : begin + size], self.probabilities[begin : begin + size]
                by_logits = inputs @ change.T
                by_logits *= probabilities
                by_logits -= probabilities * xp.sum(by_logits, axis=1, keepdims=True)
                by_head += by_logits.T @ inputs
            return (by_head / count + penalty * change) * scale

        step, solved = conjugate_gradients(product, xp.astype(-gradient * exact_scale, dtype))
        if not solved and dtype == xp.float32:
            self._keep(xp.float64)
            self.evaluate(head, l2)
            return self.newton_step(head, gradient, l2)
        change = xp.astype(step, xp.float64) * exact_scale
        # A change that is equal for all classes changes no probability and only adds penalty: the minimum has none.
        return change - xp.mean(change, axis=0), solved


def conjugate_gradients(product: Callable[[Array], Array], right: Array) -> tuple[Array, bool]:
    """Solve ``product(x) = right`` to CG_TOLERANCE, ``product`` being linear, symmetric and positive definite.

    Source: Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems". SciPy's takes arrays
    of the CPU alone. Returns x, and whether the tolerance was reached.
    """
    xp = array_namespace(right)
    solution, residual, direction = xp.zeros_like(right), right, right
    square = first = float(xp.sum(right * right))
    for _ in range(MAX_CG_ITERATIONS):
        if square <= CG_TOLERANCE**2 * first:
            return solution, True
        image = product(direction)
        curvature = float(xp.sum(direction * image))
        if not curvature > 0:  # by rounding
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        square, before = float(xp.sum(residual * residual)), square
        direction = residual + square / before * direction
    return solution, False


def _minimise(objective: _Objective, head: Array, l2: float, tolerance: float) -> Array:
    """Minimise from a head by Newton steps, each halved until the objective falls (Armijo's rule)."""
    value, gradient = objective.evaluate(head, l2)
    for _ in range(MAX_NEWTON_STEPS):
        step, solved = objective.newton_step(head, gradient, l2)
        decrease = -float((gradient * step).sum()) / 2
        for size in 0.5 ** np.arange(MAX_HALVINGS):
            new_value, new_gradient = objective.evaluate(head + size * step, l2)
            if new_value <= value - 1e-4 * size * decrease:
                break
        else:
            break  # rounding hides any further decrease
        head, value, gradient = head + size * step, new_value, new_gradient
        if decrease <= tolerance * value:
            break
    if not solved or decrease > tolerance * value:
        logger.warning(
            "the head at λ = %g is not quite at its minimum: the last step predicted %.1e less", l2, decrease
        )
    return head


def ridge_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised squared error at each λ; arguments and results are those of ``logistic_path``."""
    mean, variances, axes = principal_axes(features)
    moments = sum(np.eye(classes)[labels[rows]].T @ (block - mean) for rows, block in _blocks(features, classes))
    frequencies = np.bincount(labels, minlength=classes) / len(labels)
    for l2 in sorted(l2s, reverse=True):
        weight = moments @ axes / len(labels) / (variances + l2) @ axes.T
        yield l2, weight, frequencies - weight @ mean
