"""Linear heads on fixed features along a path of λ: multinomial logistic regression, and ridge on one-hot targets.

Logistic regression minimises ``1/n Σ_i CE(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: the objective of
fine-tuning's head. scikit-learn's ``LogisticRegression`` minimises ``C Σ_i CE_i + ½ ‖W‖²``, the same with
``C = 1 / (2 λ n)``. For two classes it has one row of weights, the difference of the two rows here, each of which is
± half of it; so there ``C = 1 / (λ n)``.

The solver is Newton's method with conjugate gradients (Nocedal and Wright 2006, "Numerical Optimization", algorithm
7.1), in coordinates whose curvature is near 1: the features' principal axes, computed once for all λ, and in these, for
each class, the features less their mean and over the root of their variance, both weighted by the class's p(1 - p),
anew in each Newton step. These are the Hessian's diagonal block of the class, but for what correlates along the axes.
(A Kronecker product of the classes' mean covariance and the features' took more products than no weighting at all.)

A λ's start is extrapolated from the last three heads as a parabola in log λ, where that lies lower than the last head.

It runs where the features are: NumPy's on the CPU, torch's on their device. Beside them it keeps one float32 copy, and
a float32 for each image and class; what is float64 is computed from some thousand images at a time. All that it asks of
the images are sums over them (``RowSums``), to which several processes can add theirs (``ranks.py``).

Ridge minimises ``1/n ‖XWᵀ + b - Y‖² + λ ‖W‖²``, Y the one-hot labels: one solution in the principal axes for each λ.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

MAX_NEWTON_STEPS = 100
TOLERANCE = 1e-11
"""The objective's estimated distance to its minimum, relative to it."""
CG_TOLERANCE = 0.1
"""What a Newton step may leave of the decrease that it could bring; less costs more than the Newton steps it saves."""
MARGIN = 10
"""How many times the estimated distance must be below the tolerance. On invented features it was up to 6 times low."""
EXTRAPOLATED = 3
"""Heads of the path that the next one's start is extrapolated from."""
MAX_CG_ITERATIONS = 500
MAX_HALVINGS = 40
MIN_CURVATURE = 1e-12
MIN_VARIANCE = 1e-6
"""Of a feature weighted by p(1 - p), relative to its mean square: less is float32's rounding."""
BLOCK_VALUES = 2**24
"""Values of the features, or of the logits, that are float64 at once."""

Array = Any
"""NumPy's or torch's: both have what the array API standard lists."""
Matrix = NDArray[np.float64]

logger = logging.getLogger(__name__)


def logistic_path(
    features: Array, labels: Array, classes: int, l2s: Sequence[float], *, tolerance: float = TOLERANCE
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised cross-entropy at each λ: ``LinearSolver.path`` on the arguments of ``RowSums``."""
    return LinearSolver(RowSums(features, labels, classes), classes).path(l2s, tolerance=tolerance)


def ridge_path(
    features: Array, labels: Array, classes: int, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised squared error at each λ: ``LinearSolver.ridge`` on the arguments of ``RowSums``."""
    return LinearSolver(RowSums(features, labels, classes), classes).ridge(l2s)


def principal_axes(features: Array) -> tuple[Array, Array, Array]:
    """Decompose the covariance of features, float (n, width).

    Returns:
        All float64: the mean (width,), the variances along the principal axes (width,), ascending, and the axes
        (width, width), one in each column.
    """
    return _principal_axes(RowSums(features, features, 0))[1:]


def _principal_axes(sums: Callable[..., list[Array]]) -> tuple[float, Array, Array, Array]:
    """Return the number of images and what ``principal_axes`` does."""
    number, total = sums("first_moments")
    xp, mean = array_namespace(total), total / number
    (scatter,) = sums("scatter", mean)
    variances, axes = xp.linalg.eigh(scatter / number)
    return float(number[0]), mean, xp.clip(variances, 0, None), axes


class RowSums:
    """The sums over images that the solver asks for; called with the name of a method and its arguments.

    ``features`` are float (n, width), NumPy's or torch's, ``labels`` int64 (n,) in 0 .. classes-1, of the same kind and
    device. Heads and their changes are (classes, width + 1), the last column is the bias.

    Values and gradients are float64, and so is the minimum. Products with the Hessian take most of the time and only
    give the direction: they are float32 until rounding makes a step fail, and float64 from then on.
    """

    def __init__(self, features: Array, labels: Array, classes: int) -> None:
        self.xp, self.features, self.labels, self.classes = array_namespace(features), features, labels, classes

    def __call__(self, name: str, *arrays: Array) -> list[Array]:
        """Return the sums that a method has, in a list."""
        sums: list[Array] = getattr(self, name)(*arrays)
        return sums

    def _blocks(self, values: int = 0) -> Iterator[tuple[slice, Array]]:
        """Yield slices of the images with their features in float64; ``values`` are what else each image has."""
        xp, size = self.xp, max(1, BLOCK_VALUES // max(1, values, self.features.shape[1]))
        for begin in range(0, len(self.features), size):
            rows = slice(begin, min(begin + size, len(self.features)))
            yield rows, xp.astype(self.features[rows], xp.float64)

    def _zeros(self, *shape: int, dtype: Any = None) -> Array:
        return self.xp.zeros(shape, dtype=dtype or self.xp.float64, device=device(self.features))

    def first_moments(self) -> list[Array]:
        """Return the number of images (1,) and the sum of their features (width,)."""
        total = self._zeros(self.features.shape[1])
        for _, block in self._blocks():
            total += self.xp.sum(block, axis=0)
        return [self._zeros(1) + len(self.features), total]

    def scatter(self, mean: Array) -> list[Array]:
        """Return the sum of (x - mean)(x - mean)ᵀ, (width, width)."""
        total = self._zeros(len(mean), len(mean))
        for _, block in self._blocks():
            centred = block - mean
            total += centred.T @ centred
        return [total]

    def keep(self, mean: Array, axes: Array, like: Array) -> list[Array]:
        """Keep the features along the axes, and room for the probabilities, in the type of ``like``; no sum."""
        self.mean, self.dtype = mean, like.dtype
        self.inputs = self._zeros(len(self.features), len(mean) + 1, dtype=self.dtype) + 1
        self.probabilities = self._zeros(len(self.features), self.classes, dtype=self.dtype)
        for rows, block in self._blocks():
            self.inputs[rows, :-1] = self.xp.astype((block - mean) @ axes, self.dtype)
        return []

    def cross_entropy(self, head: Array) -> list[Array]:
        """Return the cross-entropy (1,) of a head for the centred features, and its gradient; keep probabilities."""
        xp, weight, bias = self.xp, head[:, :-1], head[:, -1]
        loss, gradient = self._zeros(1), self._zeros(*head.shape)
        for rows, block in self._blocks(self.classes):
            inputs, labels = block - self.mean, self.labels[rows][:, None]
            logits = inputs @ weight.T + bias
            logits -= xp.max(logits, axis=1, keepdims=True)
            picked = xp.take_along_axis(logits, labels, axis=1)
            probabilities = xp.exp(logits)
            totals = xp.sum(probabilities, axis=1, keepdims=True)
            probabilities /= totals
            loss += xp.sum(xp.log(totals) - picked)
            self.probabilities[rows] = xp.astype(probabilities, self.dtype)
            probabilities[xp.arange(len(labels)), labels[:, 0]] -= 1
            gradient[:, :-1] += probabilities.T @ inputs
            gradient[:, -1] += xp.sum(probabilities, axis=0)
        return [loss, gradient]

    def _kept_blocks(self) -> Iterator[tuple[Array, Array]]:
        """Yield what ``keep`` keeps of some images at a time."""
        size = max(1, BLOCK_VALUES // max(self.inputs.shape[1], self.classes))
        for begin in range(0, len(self.inputs), size):
            yield self.inputs[begin : begin + size], self.probabilities[begin : begin + size]

    def curvature(self) -> list[Array]:
        """Return, of a class and an axis, the sums of p(1 - p) times the feature along it, and times its square."""
        first, second = (self._zeros(self.classes, self.inputs.shape[1], dtype=self.dtype) for _ in range(2))
        for inputs, probabilities in self._kept_blocks():
            weights = (probabilities * (1 - probabilities)).T
            first += weights @ inputs
            second += weights @ inputs**2
        return [first, second]

    def product(self, change: Array) -> list[Array]:
        """Return the product of the cross-entropy's Hessian, at the last head, with a change."""
        by_head = self._zeros(*change.shape, dtype=self.dtype)
        for inputs, probabilities in self._kept_blocks():
            by_logits = inputs @ change.T
            by_logits *= probabilities
            by_logits -= probabilities * self.xp.sum(by_logits, axis=1, keepdims=True)
            by_head += by_logits.T @ inputs
        return [by_head]


class _Point(NamedTuple):
    """A head along the principal axes, its cross-entropy, and the gradient of that."""

    head: Array
    cross_entropy: float
    gradient: Array


class LinearSolver:
    """Linear heads along paths of λ on the same features, which are decomposed once.

    ``cross_entropy`` is that of the head that ``path`` yielded last.
    """

    def __init__(self, sums: Callable[..., list[Array]], classes: int) -> None:
        """``sums`` is a ``RowSums``, or adds those of several processes."""
        self._sums, self._classes = sums, classes
        self._count, self._mean, self._variances, self._axes = _principal_axes(sums)
        self._xp = array_namespace(self._mean)
        self._penalised = self._xp.concat([self._xp.ones_like(self._mean), 0 * self._mean[:1]])
        self._keep(self._xp.float32)

    def _keep(self, dtype: Any) -> None:
        self._dtype = dtype
        self._sums("keep", self._mean, self._axes, self._xp.astype(self._mean[:1], dtype))

    def path(
        self,
        l2s: Sequence[float],
        *,
        start: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
        tolerance: float = TOLERANCE,
    ) -> Iterator[tuple[float, Matrix, Matrix]]:
        """Minimise the penalised cross-entropy at each λ, from the largest to the smallest.

        Where rounding or MAX_NEWTON_STEPS keeps the minimum out of reach, a warning is logged and the last point is
        yielded.

        Args:
            l2s: the values of λ, above 0, in any order.
            start: W and b to begin from; none: zeros.
            tolerance: how far above its minimum the objective may be, relative to it, by the solver's own estimate.

        Yields:
            λ, W float64 (classes, width), b float64 (classes,).
        """
        heads = dict[float, Array]()
        point = self._evaluate(self._zeros() if start is None else self._in_axes(*start))
        for l2 in sorted(l2s, reverse=True):
            if len(heads) > 1:
                guess = self._evaluate(_extrapolate(heads, l2))
                lower = self._objective(guess, l2) < self._objective(point, l2)
                point = guess if lower else self._evaluate(point.head)
            point = self._minimise(point, l2, tolerance)
            heads = dict([*heads.items(), (l2, point.head)][-EXTRAPOLATED:])
            self.cross_entropy = point.cross_entropy
            yield l2, *self._of_features(point.head)

    def ridge(self, l2s: Sequence[float]) -> Iterator[tuple[float, Matrix, Matrix]]:
        """Minimise the penalised squared error at each λ; arguments and results are those of ``path``."""
        gradient = self._evaluate(self._zeros()).gradient  # of equal probabilities: less the targets' moments
        frequencies = 1 / self._classes - gradient[:, -1:]
        for l2 in sorted(l2s, reverse=True):
            weight = -gradient[:, :-1] / (self._variances + l2)
            yield l2, *self._of_features(self._xp.concat([weight, frequencies], axis=1))

    def _zeros(self) -> Array:
        """Return the head that says nothing."""
        shape = self._classes, len(self._penalised)
        return self._xp.zeros(shape, dtype=self._xp.float64, device=device(self._mean))

    def _in_axes(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> Array:
        """Return the head of a weight and a bias for the features as they are."""
        xp, like = self._xp, {"dtype": self._xp.float64, "device": device(self._mean)}
        by_feature, offset = xp.asarray(weight, **like), xp.asarray(bias, **like)
        return xp.concat([by_feature @ self._axes, (offset + by_feature @ self._mean)[:, None]], axis=1)

    def _of_features(self, head: Array) -> tuple[Matrix, Matrix]:
        """Return the weight and bias of a head for the features as they are."""
        weight = head[:, :-1] @ self._axes.T
        bias = head[:, -1] - weight @ self._mean
        if isinstance(weight, np.ndarray):
            return weight, bias
        return weight.cpu().numpy(), bias.cpu().numpy()

    def _evaluate(self, head: Array) -> _Point:
        """Return the cross-entropy and its gradient; the next ``_newton_step`` is one from here."""
        concat = self._xp.concat
        loss, by_feature = self._sums("cross_entropy", concat([head[:, :-1] @ self._axes.T, head[:, -1:]], axis=1))
        gradient = concat([by_feature[:, :-1] @ self._axes, by_feature[:, -1:]], axis=1)
        return _Point(head, float(loss[0]) / self._count, gradient / self._count)

    def _objective(self, point: _Point, l2: float) -> float:
        return point.cross_entropy + l2 * float(self._xp.sum(point.head**2 * self._penalised))

    def _minimise(self, point: _Point, l2: float, tolerance: float) -> _Point:
        """Minimise from a point by Newton steps, each halved until the objective falls (Armijo's rule)."""
        value, distance = self._objective(point, l2), math.inf
        for _ in range(MAX_NEWTON_STEPS):
            gradient = point.gradient + 2 * l2 * self._penalised * point.head
            step, distance = self._newton_step(point.head, gradient, l2, tolerance * value / MARGIN / 2)
            decrease = -float(self._xp.sum(gradient * step)) / 2
            for size in 0.5 ** np.arange(MAX_HALVINGS):
                new = self._evaluate(point.head + size * step)
                fallen = value - self._objective(new, l2)
                if fallen >= 1e-4 * size * decrease:
                    break
            else:
                distance += decrease
                break  # rounding hides any further decrease
            # What CG left, and how far from a parabola the objective is: Newton's error is of its order or smaller.
            distance = distance + abs(decrease - fallen) if size == 1 else math.inf
            point, value = new, value - fallen
            if MARGIN * distance <= tolerance * value:
                break
        if distance > tolerance * value:
            logger.warning(
                "the head at λ = %g is not quite at its minimum: it may be %.1e above it, of %.1e", l2, distance, value
            )
        return point

    def _newton_step(self, head: Array, gradient: Array, l2: float, enough: float) -> tuple[Array, float]:
        """Solve ``Hessian · step = -gradient`` at the head evaluated last.

        Returns the step, and by how much CG's next ones would lower the objective, infinity where it failed.
        """
        xp, count = self._xp, self._count
        penalty = xp.astype(2 * l2 * self._penalised, self._dtype)
        first, second = self._sums("curvature")
        mass = xp.clip(first[:, -1:], MIN_CURVATURE, None)
        # x - centre and the bias that it makes have no curvature in common; the bias's own is the mass.
        centre = first / mass * xp.astype(self._penalised, self._dtype)
        variance = xp.clip(second - first * centre, MIN_VARIANCE * second, None)
        scale = 1 / xp.sqrt(xp.clip(variance / count + penalty, MIN_CURVATURE, None))

        def unscaled(change: Array) -> Array:
            scaled = change * scale
            scaled[:, -1] -= xp.sum(scaled * centre, axis=1)
            return scaled

        def product(change: Array) -> Array:
            original = unscaled(change)
            (by_head,) = self._sums("product", original)
            by_head = by_head / count + penalty * original
            return (by_head - centre * by_head[:, -1:]) * scale

        right = xp.astype((centre * gradient[:, -1:] - gradient) * scale, self._dtype)
        step, left = conjugate_gradients(product, right, enough)
        if left == math.inf and self._dtype == xp.float32:
            self._keep(xp.float64)
            self._evaluate(head)
            return self._newton_step(head, gradient, l2, enough)
        change = unscaled(xp.astype(step, xp.float64))
        # A change that is equal for all classes changes no probability and only adds penalty: the minimum has none.
        return change - xp.mean(change, axis=0), left


def _extrapolate(heads: dict[float, Array], l2: float) -> Array:
    """Return the value at log λ of the polynomial through the heads, by their λ (Lagrange's formula)."""
    return sum(
        math.prod(math.log(l2 / other) / math.log(own / other) for other in heads if other != own) * head
        for own, head in heads.items()
    )


def conjugate_gradients(product: Callable[[Array], Array], right: Array, enough: float = 0.0) -> tuple[Array, float]:
    """Minimise ``½ x·product(x) - x·right``, ``product`` being linear, symmetric and positive definite.

    It ends CG_TOLERANCE of the whole decrease above the minimum, or ``enough`` where that is more.

    Source: Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems"; their theorem 6:1
    has what each iteration takes off. SciPy's takes arrays of the CPU alone. Returns x, and what ``_left`` estimates
    that further iterations would take off; infinity if the tolerance was not reached.
    """
    xp = array_namespace(right)
    solution, residual, direction = xp.zeros_like(right), right, right
    square, decreases = float(xp.sum(right * right)), list[float]()
    for _ in range(MAX_CG_ITERATIONS):
        left = _left(decreases) if square else 0.0
        if left <= max(CG_TOLERANCE * sum(decreases), enough):
            return solution, left
        image = product(direction)
        curvature = float(xp.sum(direction * image))
        if not curvature > 0:  # by rounding
            break
        decreases.append(square**2 / curvature / 2)
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        square, before = float(xp.sum(residual * residual)), square
        direction = residual + square / before * direction
    return solution, math.inf


def _left(decreases: list[float]) -> float:
    """Return the sum of the iterations to come, if it falls as the last third does against the one before it."""
    length = max(3, len(decreases) // 3)
    last, before = sum(decreases[-length:]), sum(decreases[-2 * length : -length])
    return last**2 / (before - last) if last < before else math.inf
