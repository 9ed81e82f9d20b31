"""The ridge head on fixed features: least squares to the one-hot labels with an L2 penalty, in closed form.

``Loss(W, b) = 1/n Σ_i ‖x_i·Wᵀ + b - onehot(y_i)‖² + λ ‖W‖²``, the bias unpenalised. With the features centred and
``XᵀX/n = V diag(σ²) Vᵀ``, the minimum is ``Wᵀ = V diag(1 / (σ² + λ)) Vᵀ XᵀY/n``: one decomposition serves every λ
(Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", 3.4.1). scikit-learn's ``Ridge``
minimises ``‖XWᵀ + b - Y‖² + alpha ‖W‖²``, the same with ``alpha = λ n``.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.libraries.linear import Matrix, principal_axes


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
