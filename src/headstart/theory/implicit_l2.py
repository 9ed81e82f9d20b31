"""Early stopping as an implicit L2: gradient descent from zero, stopped after t steps, is near the λ path at 1/(2τt).

For ``1/n ‖Xw − y‖² + λ‖w‖²`` both solutions are known in the eigenbasis of ``XᵀX/n``: each multiplies the least-squares
coefficient along an eigenvector by a filter of its eigenvalue σ, and the filters' slopes at σ = 0 are equal where
``λ = 1/(2τt)``. For the softmax and logistic losses the same λ is exact as t → 0 and close afterwards (measured by
``headstart study early-stopping``). Ali, Kolter and Tibshirani 2019, "A Continuous-Time View of Early Stopping for
Least Squares Regression"; derived in ``docs/mathematics.md``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from headstart.probe.logistic import principal_axes
from headstart.targets.target import Link, Target, Values
from headstart.theory.oracle import Array

CURVATURE: dict[Link, float] = {"softmax": 0.5, "logistic": 0.25, "identity": 2.0}
"""Bounds on the largest eigenvalue of the Hessian of an image's loss by its outputs: Böhning's (1992, "Multinomial
logistic regression algorithm"), that of p(1 - p), and that of a square."""


def descent_filter(eigenvalues: Array, rate: float, steps: int) -> Array:
    """Return ``1 − (1 − 2τσ)^t``, gradient descent from zero on ``1/n ‖Xw − y‖²`` after t steps of size τ.

    It converges for 2τσ < 2, and for 2τσ ≤ 1 monotonically.

    Args:
        eigenvalues: σ of ``XᵀX/n``, (width,).
        rate: τ.
        steps: t.
    """
    return np.asarray(1 - (1 - 2 * rate * eigenvalues) ** steps)


def ridge_filter(eigenvalues: Array, l2: float) -> Array:
    """Return ``σ/(σ + λ)``, the minimum of ``1/n ‖Xw − y‖² + λ‖w‖²``."""
    return np.asarray(eigenvalues / (eigenvalues + l2))


def equivalent_l2(rate: float, steps: float) -> float:
    """Return the λ that t steps of size τ are equivalent to, ``1/(2τt)``."""
    return 1 / (2 * rate * steps)


def safe_rate(features: NDArray[np.floating], target: Target) -> float:
    """Return τ = 1/L for a head on centred features, with which every gradient descent step lowers the loss.

    L is ``CURVATURE · σ_max``, σ_max the largest eigenvalue of ``XᵀX/n`` with the bias's constant input in X.
    """
    _, variances, _ = principal_axes(features)
    return 1 / (CURVATURE[target.link] * max(1.0, float(variances[-1])))


def descent_path(
    features: NDArray[np.floating], values: Values, target: Target, rate: float, steps: Sequence[int]
) -> Iterator[tuple[int, Array, Array]]:
    """Run full-batch gradient descent on a head's mean loss, without a penalty.

    It starts at the λ path's point for λ = ∞: zero weights, and the bias with the lowest loss. The features are
    centred, since their mean would slow the rest down; on the λ path the mean only changes the bias.

    Args:
        features: float (n, width).
        values: the target's; each class and each value of a label occurs.
        target: the rows of its head's weight stay equal where it has them ``tied``.
        rate: τ, the size of a step.
        steps: the step counts t at which the head is yielded, ascending.

    Yields:
        t, W float64 (outputs, width), b float64 (outputs,), for the features that are not centred.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    inputs, frequencies = features - mean, np.nanmean(target.responses(values, mean), axis=0)
    weight, bias = np.zeros((target.outputs, features.shape[1])), frequencies
    if target.link == "softmax":
        bias = np.log(frequencies) - np.log(frequencies).mean()
    if target.link == "logistic":
        bias = logit(frequencies)
    done = 0
    for t in steps:
        for _ in range(t - done):
            by_outputs = target.derivatives(inputs @ weight.T + bias, values)[1] / len(inputs)
            by_weight = by_outputs.T @ inputs
            if target.tied:
                by_weight = by_weight.mean(axis=0, keepdims=True)
            weight, bias = weight - rate * by_weight, bias - rate * by_outputs.sum(axis=0)
        done = t
        yield t, weight, bias - weight @ mean


@dataclass(frozen=True)
class NearestPoint:
    """The point of a λ path nearest to a head: its λ, ``‖W − W_λ‖/‖W‖``, and whether it is an end of the path."""

    l2: float
    distance: float
    at_end: bool


def nearest_l2(weight: Array, l2s: Array, path: Array) -> NearestPoint:
    """Find a λ path's nearest point to a head, on straight lines between its points; log λ is linear along each.

    Args:
        weight: W, not zero.
        l2s: λ of the path's points (m,), in order, m at least 2.
        path: their W, (m, *shape of W).
    """
    points = path.reshape(len(path), -1)
    along = np.diff(points, axis=0)
    away = weight.ravel() - points[:-1]
    fraction = np.clip((away * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
    distances = np.linalg.norm(away - fraction[:, None] * along, axis=1)
    i = int(distances.argmin())
    log_l2 = (1 - fraction[i]) * np.log(l2s[i]) + fraction[i] * np.log(l2s[i + 1])
    at_end = (i, fraction[i]) in ((0, 0.0), (len(along) - 1, 1.0))
    return NearestPoint(float(np.exp(log_l2)), float(distances[i] / np.linalg.norm(weight)), at_end)
