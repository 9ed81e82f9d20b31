"""The linear head on fixed features: multinomial logistic regression with an L2 penalty, along a path of λ.

``Loss(W, b) = 1/n Σ_i CE(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: the objective of fine-tuning's head.

Features of a network are strongly correlated and a small λ leaves the objective almost flat, so that gradients alone
take thousands of steps. Newton's method with conjugate gradients (scipy's ``trust-ncg``) takes a few, in coordinates
whose curvature is near 1: the features are rotated to their principal axes, once for all λ, and each coordinate is
divided by the root of the Hessian's diagonal at the solution before.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

MAX_ITERATIONS = 100
GRADIENT_TOLERANCE = 1e-6
"""Of the gradient's norm in the scaled coordinates; the objective is then within 1e-6 of its minimum, relatively."""
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
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    _, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    inputs, one_hot = centred @ axes, np.eye(classes)[labels]
    head = np.zeros((classes, features.shape[1] + 1))  # the last column is the bias
    for l2 in sorted(l2s, reverse=True):
        probabilities = softmax(_logits(head, inputs), axis=1)
        variance = probabilities * (1 - probabilities) / len(inputs)
        diagonal = np.column_stack([variance.T @ inputs**2 + 2 * l2, variance.sum(axis=0)])
        scale = 1 / np.sqrt(np.maximum(diagonal, LEAST_CURVATURE))
        solution = minimize(
            _loss_and_gradient,
            (head / scale).ravel(),
            args=(inputs, one_hot, l2, scale),
            jac=True,
            hessp=_hessian_product,
            method="trust-ncg",
            options={"gtol": GRADIENT_TOLERANCE, "maxiter": MAX_ITERATIONS},
        )
        # Rounding may end the search a little above the tolerance.
        if (norm := np.linalg.norm(solution.jac)) > 10 * GRADIENT_TOLERANCE:
            logger.warning("the head at λ = %g is not quite at its minimum: the gradient's norm is %.1e", l2, norm)
        head = solution.x.reshape(head.shape) * scale
        head -= head.mean(axis=0)  # what all classes share changes no probability and only costs penalty
        weight = head[:, :-1] @ axes.T
        yield l2, weight, head[:, -1] - weight @ mean


def _loss_and_gradient(
    point: Matrix, inputs: Matrix, one_hot: Matrix, l2: float, scale: Matrix
) -> tuple[float, Matrix]:
    """Give the objective and its gradient at the head ``point · scale``, as flat arrays."""
    head = point.reshape(scale.shape) * scale
    log_probabilities = log_softmax(_logits(head, inputs), axis=1)
    loss = -(one_hot * log_probabilities).sum() / len(inputs) + l2 * (head[:, :-1] ** 2).sum()
    return float(loss), _pulled_back(np.exp(log_probabilities) - one_hot, head, inputs, l2, scale)


def _hessian_product(
    point: Matrix, direction: Matrix, inputs: Matrix, _one_hot: Matrix, l2: float, scale: Matrix
) -> Matrix:
    """Give the objective's Hessian at a point times a direction."""
    probabilities = softmax(_logits(point.reshape(scale.shape) * scale, inputs), axis=1)
    change = direction.reshape(scale.shape) * scale
    product = probabilities * _logits(change, inputs)
    return _pulled_back(product - probabilities * product.sum(axis=1, keepdims=True), change, inputs, l2, scale)


def _logits(head: Matrix, inputs: Matrix) -> Matrix:
    return np.asarray(inputs @ head[:, :-1].T + head[:, -1])


def _pulled_back(by_logits: Matrix, head: Matrix, inputs: Matrix, l2: float, scale: Matrix) -> Matrix:
    """Turn a derivative by each picture's logits into one by the point, and add the penalty's."""
    by_weight = by_logits.T @ inputs / len(inputs) + 2 * l2 * head[:, :-1]
    return np.asarray((np.column_stack([by_weight, by_logits.mean(axis=0)]) * scale).ravel())


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Give the mean cross-entropy of logits (n, classes)."""
    return float(-log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels].mean())
