"""Early stopping as an implicit L2: gradient descent from zero, stopped after t steps, is near the λ path at 1/(2τt).

For ``1/n ‖Xw − y‖² + λ‖w‖²`` both are exact in the eigenbasis of ``XᵀX/n``: each multiplies the least-squares
coefficient along an eigenvector by a filter of its eigenvalue σ, and the filters' slopes at σ = 0 are equal where
``λ = 1/(2τt)``. For the softmax the same λ is exact as t → 0 and close after (measured by ``headstart study
early-stopping``). Ali, Kolter and Tibshirani 2019, "A Continuous-Time View of Early Stopping for Least Squares
Regression"; derived in ``docs/mathematics.md``.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from headstart.probe.logistic import principal_axes

Array = NDArray[np.float64]


def descent_filter(eigenvalues: Array, rate: float, steps: int) -> Array:
    """Return ``1 − (1 − 2τσ)^t`` (width,), gradient descent from zero on ``1/n ‖Xw − y‖²`` after t steps of size τ.

    It converges where 2τσ < 2, σ the eigenvalues of ``XᵀX/n``; where 2τσ ≤ 1 without overshooting.
    """
    return np.asarray(1 - (1 - 2 * rate * eigenvalues) ** steps)


def ridge_filter(eigenvalues: Array, l2: float) -> Array:
    """Return ``σ/(σ + λ)``, the minimum of ``1/n ‖Xw − y‖² + λ‖w‖²``."""
    return np.asarray(eigenvalues / (eigenvalues + l2))


def equivalent_l2(rate: float, steps: float) -> float:
    """Return the λ that t steps of size τ are like, ``1/(2τt)``."""
    return 1 / (2 * rate * steps)


def safe_rate(features: NDArray[np.floating]) -> float:
    """Return τ = 1/L for the softmax head on centred features: with it every step of gradient descent lowers the loss.

    L is Böhning's bound (1992, "Multinomial logistic regression algorithm") on the Hessian, ``½ σ_max``, σ_max the
    largest eigenvalue of ``XᵀX/n`` with the bias's constant input in X.
    """
    _, _, variances, _ = principal_axes(features)
    return 2 / max(1.0, float(variances[-1]))


def descent_path(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: int, rate: float, steps: Sequence[int]
) -> Iterator[tuple[int, Array, Array]]:
    """Run full-batch gradient descent on the softmax head's mean cross-entropy, without a penalty.

    It starts where the λ path starts at λ = ∞: from zero weights, with the bias that gives the classes' fractions, each
    above zero. It sees the features (n, width) centred, as their mean would slow the rest down; on the λ path that is
    the bias's alone.

    Yields:
        Each of the ascending step counts, W float64 (classes, width) and b float64 (classes,) after it, for the
        features as they came.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    inputs, one_hot = features - mean, np.eye(classes)[labels]
    weight, bias = np.zeros((classes, features.shape[1])), np.log(one_hot.mean(axis=0))
    bias -= bias.mean()
    done = 0
    for t in steps:
        for _ in range(t - done):
            by_logits = (softmax(inputs @ weight.T + bias, axis=1) - one_hot) / len(inputs)
            weight, bias = weight - rate * (by_logits.T @ inputs), bias - rate * by_logits.sum(axis=0)
        done = t
        yield t, weight, bias - weight @ mean


class Nearest(NamedTuple):
    """The point of a λ path that is nearest to a head: its λ, ``‖W − W_λ‖/‖W‖``, and whether it is an end."""

    l2: float
    distance: float
    at_end: bool


def nearest_l2(weight: Array, l2s: Array, path: Array) -> Nearest:
    """Find where a path passes nearest to a head W ≠ 0, on straight lines between its points, log λ linear along each.

    The path has at least two points, W (m, *shape of W) in the order of their λ (m,).
    """
    points = path.reshape(len(path), -1)
    along = np.diff(points, axis=0)
    away = weight.ravel() - points[:-1]
    fraction = np.clip((away * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
    distances = np.linalg.norm(away - fraction[:, None] * along, axis=1)
    i = int(distances.argmin())
    log_l2 = np.interp(i + fraction[i], np.arange(len(l2s)), np.log(l2s))
    at_end = i + fraction[i] in {0, len(along)}
    return Nearest(float(np.exp(log_l2)), float(distances[i] / np.linalg.norm(weight)), at_end)
