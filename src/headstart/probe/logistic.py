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

Ridge minimises ``1/n ‖XWᵀ + b - Y‖² + λ ‖W‖²``, Y the one-hot labels: one solution in the principal axes for each λ.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg

MAX_NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-9
"""The decrease predicted for the last Newton step, relative to the objective; what remains after it is far smaller."""
CG_TOLERANCE = 0.1
"""The residual's norm in a Newton step, relative; a smaller one costs more than the Newton steps that it saves."""
MAX_CG_ITERATIONS = 500
MAX_HALVINGS = 40
MIN_CURVATURE = 1e-12

Matrix = NDArray[np.float64]

logger = logging.getLogger(__name__)


def logistic_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised cross-entropy at each λ, from the largest to the smallest, each from the one before.

    Where rounding or MAX_NEWTON_STEPS keeps the minimum out of reach, a warning is logged and the last point yielded.

    ``features`` are float (n, width), ``labels`` int64 (n,) in 0 .. classes-1, the values of λ above 0 in any order.

    Yields:
        λ, W float64 (classes, width), b float64 (classes,).
    """
    mean, centred, variances, axes = principal_axes(features)
    objective = _Objective(centred @ axes, variances, labels)
    del centred
    head = np.zeros((classes, features.shape[1] + 1))
    for l2 in sorted(l2s, reverse=True):
        head = _minimise(objective, head, l2)
        weight = head[:, :-1] @ axes.T
        yield l2, weight, head[:, -1] - weight @ mean


def principal_axes(features: NDArray[np.floating]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Decompose the covariance of features, float (n, width).

    Returns:
        All float64: the mean (width,), the features less the mean (n, width), the variances along the principal axes
        (width,), ascending, and the axes (width, width), one in each column.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    return mean, centred, np.maximum(variances, 0), axes


class _Objective:
    """The objective of a head (classes, width + 1) in the principal axes; its last column is the bias.

    Values and gradients are float64, and so is the minimum. Products with the Hessian take most of the time and only
    give the direction: they are float32 until rounding makes a step fail, and float64 from then on.
    """

    def __init__(self, features: Matrix, variances: Matrix, labels: NDArray[np.int64]) -> None:
        self.inputs = np.column_stack([features, np.ones(len(features))])
        self.hessian_inputs: NDArray[np.floating] = self.inputs.astype(np.float32)
        self.variances = np.append(variances, 1)
        self.penalised = np.append(np.ones(len(variances)), 0)
        self.label_entries = np.arange(len(labels)), labels

    def value(self, head: Matrix, l2: float) -> tuple[float, Matrix]:
        """Return the objective and the probabilities (n, classes)."""
        logits = self.inputs @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[self.label_entries]
        probabilities = np.exp(logits, out=logits)
        totals = probabilities.sum(axis=1, keepdims=True)
        probabilities /= totals
        return float((np.log(totals[:, 0]) - picked).mean() + l2 * (head**2 @ self.penalised).sum()), probabilities

    def gradient(self, head: Matrix, probabilities: Matrix, l2: float) -> Matrix:
        """Return the derivative with respect to each entry of the head."""
        residual = probabilities.copy()
        residual[self.label_entries] -= 1
        return np.asarray(residual.T @ self.inputs / len(residual) + 2 * l2 * self.penalised * head)

    def newton_step(self, gradient: Matrix, probabilities: Matrix, l2: float) -> tuple[Matrix, bool]:
        """Solve ``Hessian · step = -gradient`` to CG_TOLERANCE; return the step and whether CG converged."""
        dtype = self.hessian_inputs.dtype
        count = len(probabilities)
        variance = probabilities.mean(axis=0) - np.einsum("ij,ij->j", probabilities, probabilities) / count
        curvature = np.outer(variance, self.variances) + 2 * l2 * self.penalised
        scale = (1 / np.sqrt(np.maximum(curvature, MIN_CURVATURE))).astype(dtype)
        penalty, cast_probabilities = (2 * l2 * self.penalised).astype(dtype), probabilities.astype(dtype)

        def product(direction: NDArray[np.floating]) -> NDArray[np.floating]:
            change = direction.reshape(gradient.shape) * scale
            by_logits = self.hessian_inputs @ change.T
            by_logits *= cast_probabilities
            by_logits -= cast_probabilities * by_logits.sum(axis=1, keepdims=True)
            by_head = by_logits.T @ self.hessian_inputs / dtype.type(count) + penalty * change
            return np.asarray((by_head * scale).ravel())

        hessian = LinearOperator((gradient.size, gradient.size), matvec=product, dtype=dtype)
        right = -(gradient * scale).astype(dtype).ravel()
        step, failed = cg(hessian, right, rtol=CG_TOLERANCE, maxiter=MAX_CG_ITERATIONS)
        if failed and dtype == np.float32:
            self.hessian_inputs = self.inputs
            return self.newton_step(gradient, probabilities, l2)
        change = np.asarray(step.reshape(gradient.shape) * scale, np.float64)
        # A change that is equal for all classes changes no probability and only adds penalty: the minimum has none.
        return change - change.mean(axis=0), not failed


def _minimise(objective: _Objective, head: Matrix, l2: float) -> Matrix:
    """Minimise from a head by Newton steps, each halved until the objective falls (Armijo's rule)."""
    value, probabilities = objective.value(head, l2)
    for _ in range(MAX_NEWTON_STEPS):
        gradient = objective.gradient(head, probabilities, l2)
        step, solved = objective.newton_step(gradient, probabilities, l2)
        decrease = -float((gradient * step).sum()) / 2
        for size in 0.5 ** np.arange(MAX_HALVINGS):
            new_value, new_probabilities = objective.value(head + size * step, l2)
            if new_value <= value - 1e-4 * size * decrease:
                break
        else:
            break  # rounding hides any further decrease
        head, value, probabilities = head + size * step, new_value, new_probabilities
        if decrease <= NEWTON_TOLERANCE * value:
            break
    if not solved or decrease > NEWTON_TOLERANCE * value:
        logger.warning(
            "the head at λ = %g is not quite at its minimum: the last step predicted %.1e less", l2, decrease
        )
    return head


def ridge_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised squared error at each λ; arguments and results are those of ``logistic_path``."""
    mean, centred, variances, axes = principal_axes(features)
    one_hot = np.eye(classes)[labels]
    moments = one_hot.T @ centred @ axes / len(labels)
    for l2 in sorted(l2s, reverse=True):
        weight = moments / (variances + l2) @ axes.T
        yield l2, weight, one_hot.mean(axis=0) - weight @ mean
