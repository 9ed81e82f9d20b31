"""The linear head on fixed features: multinomial logistic regression with an L2 penalty, along a path of λ.

``Loss(W, b) = 1/n Σ_i CE(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: the objective of fine-tuning's head.

Features of a network are strongly correlated, and plain L-BFGS takes thousands of steps on them. Böhning's bound
(1992, "Multinomial logistic regression algorithm") says that the Hessian is at most ``½ XᵀX/n + 2λ`` for each class;
in coordinates in which that bound is the identity, tens of steps do. One eigendecomposition of XᵀX serves every λ.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

MAX_ITERATIONS = 1000
GRADIENT_TOLERANCE = 1e-6

Matrix = NDArray[np.float64]


def l2_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Find the head at each λ, from the largest to the smallest, each from the solution before it.

    Args:
        features: float (n, width).
        labels: int64 (n,), in 0 .. classes-1.
        classes: number of them.
        l2s: the values of λ, each above 0.

    Yields:
        λ, W float64 (classes, width), b float64 (classes,).

    Raises:
        RuntimeError: the minimum was not reached in MAX_ITERATIONS steps.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    eigenvalues, rotation = np.linalg.eigh(centred.T @ centred / len(centred))
    rotated = centred @ rotation
    one_hot = np.eye(classes)[labels]
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    for l2 in sorted(l2s, reverse=True):
        scale = 1 / np.sqrt(np.maximum(eigenvalues, 0) / 2 + 2 * l2)
        start = np.column_stack([weight @ rotation / scale, bias + weight @ mean])
        solution = minimize(
            _loss_and_gradient,
            start.ravel(),
            args=(rotated * scale, one_hot, l2 * scale**2),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxcor": 20},
        )
        # L-BFGS-B also ends where rounding stops its line search; that is a minimum if the gradient says so.
        if np.abs(solution.jac).max() > 100 * GRADIENT_TOLERANCE:
            raise RuntimeError(f"the head at λ = {l2:g} did not converge: {solution.message}")
        found = solution.x.reshape(classes, -1)
        weight = found[:, :-1] * scale @ rotation.T
        bias = found[:, -1] - weight @ mean
        yield l2, weight, bias


def _loss_and_gradient(point: Matrix, inputs: Matrix, one_hot: Matrix, penalty: Matrix) -> tuple[float, Matrix]:
    """Give the objective and its gradient in the scaled coordinates.

    Args:
        point: (classes · (width + 1),), the last column the bias.
        inputs: (n, width), rotated and scaled.
        one_hot: (n, classes).
        penalty: (width,), λ of each coordinate.
    """
    weight, bias = (part := point.reshape(one_hot.shape[1], -1))[:, :-1], part[:, -1]
    log_probabilities = log_softmax(inputs @ weight.T + bias, axis=1)
    loss = -(one_hot * log_probabilities).sum() / len(inputs) + (penalty * weight**2).sum()
    residual = (np.exp(log_probabilities) - one_hot) / len(inputs)
    gradient = np.column_stack([residual.T @ inputs + 2 * penalty * weight, residual.sum(axis=0)])
    return float(loss), gradient.ravel()


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Give the mean cross-entropy of logits (n, classes)."""
    return float(-log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels].mean())
