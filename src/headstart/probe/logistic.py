"""The linear head on fixed features: multinomial logistic regression with an L2 penalty, along a path of λ.

``Loss(W, b) = 1/n Σ_i CE(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: the objective of fine-tuning's head.
scikit-learn's ``LogisticRegression`` minimises ``C Σ_i CE_i + ½ ‖W‖²``, the same with ``C = 1 / (2 λ n)``. For two
classes it has one row, the difference of ours, which are ± half of it, so that there ``C = 1 / (λ n)``.

Newton's method with conjugate gradients (Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.1), in
coordinates whose curvature is near 1. Böhning 1992, "Multinomial logistic regression algorithm": the Hessian of the
cross-entropy is at most ``½ (I - 11ᵀ/C) ⊗ XᵀX/n`` (C the number of classes). The bound's factor for the features is
diagonal in their principal axes, which are found once for all λ; its ½ is replaced by what it stands above, the class's
own mean of p(1 - p), which is far smaller for a rare class or one of many.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import log_softmax

MAX_ITERATIONS = 100
TOLERANCE = 1e-9
"""Of the decrease that the last Newton step promises, relative to the objective; what then is left is far less."""
CG_TOLERANCE = 0.1
"""Of the residual's norm in a Newton step. A smaller one costs more than the Newton steps that it saves."""
MAX_PRODUCTS = 500
MAX_HALVINGS = 40
LEAST_CURVATURE = 1e-12

Matrix = NDArray[np.float64]

logger = logging.getLogger(__name__)


def l2_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Find the head at each λ, from the largest to the smallest, each from the solution before it.

    A minimum that rounding or MAX_ITERATIONS keeps out of reach is logged as a warning; the nearest point is given.

    Args:
        features: float (n, width).
        labels: int64 (n,), in 0 .. classes-1.
        classes: number of them.
        l2s: the values of λ, each above 0.

    Yields:
        λ, W float64 (classes, width), b float64 (classes,).
    """
    mean, centred, variances, axes = principal_axes(features)
    objective = _Objective(centred @ axes, variances, labels)
    del centred
    head = np.zeros((classes, features.shape[1] + 1))
    for l2 in sorted(l2s, reverse=True):
        head = _minimum(objective, head, l2)
        weight = head[:, :-1] @ axes.T
        yield l2, weight, head[:, -1] - weight @ mean


def principal_axes(features: NDArray[np.floating]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Decompose the features' covariance.

    Args:
        features: float (n, width).

    Returns:
        All float64: the mean (width,), the features less it (n, width), the variances along the principal axes
        (width,) and the axes (width, width), one a column.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    return mean, centred, np.maximum(variances, 0), axes


class _Objective:
    """The objective of heads (classes, width + 1) in the principal axes, the last column the bias.

    Values and gradients are float64, so the minimum is too. Products with the Hessian, which are most of the time and
    only lead there, are float32, unless rounding keeps them from it: then float64 from there on.
    """

    def __init__(self, features: Matrix, variances: Matrix, labels: NDArray[np.int64]) -> None:
        self.inputs = np.column_stack([features, np.ones(len(features))])
        self.quick_inputs: NDArray[np.floating] = self.inputs.astype(np.float32)
        self.variances = np.append(variances, 1)
        self.penalised = np.append(np.ones(len(variances)), 0)
        self.of_labels = np.arange(len(labels)), labels

    def value(self, head: Matrix, l2: float) -> tuple[float, Matrix]:
        """Return the objective and the probabilities (n, classes)."""
        logits = self.inputs @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[self.of_labels]
        probabilities = np.exp(logits, out=logits)
        totals = probabilities.sum(axis=1, keepdims=True)
        probabilities /= totals
        return float((np.log(totals[:, 0]) - picked).mean() + l2 * (head**2 @ self.penalised).sum()), probabilities

    def gradient(self, head: Matrix, probabilities: Matrix, l2: float) -> Matrix:
        """Return the derivative by each entry of the head."""
        residual = probabilities.copy()
        residual[self.of_labels] -= 1
        return np.asarray(residual.T @ self.inputs / len(residual) + 2 * l2 * self.penalised * head)

    def newton_step(self, gradient: Matrix, probabilities: Matrix, l2: float) -> tuple[Matrix, bool]:
        """Solve ``Hessian · step = -gradient`` to CG_TOLERANCE, and say whether MAX_PRODUCTS sufficed."""
        dtype = self.quick_inputs.dtype
        count = len(probabilities)
        variance = probabilities.mean(axis=0) - np.einsum("ij,ij->j", probabilities, probabilities) / count
        curvature = np.outer(variance, self.variances) + 2 * l2 * self.penalised
        scale = (1 / np.sqrt(np.maximum(curvature, LEAST_CURVATURE))).astype(dtype)
        penalty, quick_probabilities = (2 * l2 * self.penalised).astype(dtype), probabilities.astype(dtype)

        def product(direction: NDArray[np.floating]) -> NDArray[np.floating]:
            change = direction.reshape(gradient.shape) * scale
            by_logits = self.quick_inputs @ change.T
            by_logits *= quick_probabilities
            by_logits -= quick_probabilities * by_logits.sum(axis=1, keepdims=True)
            by_head = by_logits.T @ self.quick_inputs / dtype.type(count) + penalty * change
            return np.asarray((by_head * scale).ravel())

        hessian = LinearOperator((gradient.size, gradient.size), matvec=product, dtype=dtype)
        right = -(gradient * scale).astype(dtype).ravel()
        step, failed = cg(hessian, right, rtol=CG_TOLERANCE, maxiter=MAX_PRODUCTS)
        if failed and dtype == np.float32:
            self.quick_inputs = self.inputs
            return self.newton_step(gradient, probabilities, l2)
        change = np.asarray(step.reshape(gradient.shape) * scale, np.float64)
        # What all classes share changes no probability and only costs penalty: the minimum has none of it.
        return change - change.mean(axis=0), not failed


def _minimum(objective: _Objective, head: Matrix, l2: float) -> Matrix:
    """Go from a head to the minimum: Newton steps, each halved until the objective falls (Armijo's rule)."""
    value, probabilities = objective.value(head, l2)
    for _ in range(MAX_ITERATIONS):
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
        if decrease <= TOLERANCE * value:
            break
    if not solved or decrease > TOLERANCE * value:
        logger.warning("the head at λ = %g is not quite at its minimum: the last step promised %.1e less", l2, decrease)
    return head


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy of logits (n, classes)."""
    return float(-log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def ridge_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Find the head at each λ, from the largest to the smallest.

    Args:
        features: float (n, width).
        labels: int64 (n,), in 0 .. classes-1.
        classes: number of them.
        l2s: the values of λ, each above 0.

    Yields:
        λ, W float64 (classes, width), b float64 (classes,).
    """
    mean, centred, variances, axes = principal_axes(features)
    one_hot = np.eye(classes)[labels]
    moments = one_hot.T @ centred @ axes / len(labels)
    for l2 in sorted(l2s, reverse=True):
        weight = moments / (variances + l2) @ axes.T
        yield l2, weight, one_hot.mean(axis=0) - weight @ mean
