"""Linear heads on fixed features along a path of λ, for any target: by Newton's method, or by least squares.

The objective is ``1/n Σ_i loss(x_i·Wᵀ + b, y_i) + λ ‖W‖²``, the bias unpenalised: that of fine-tuning's head. The loss
is the target's plain one. Of classes that is multinomial logistic regression; scikit-learn's ``LogisticRegression``
minimises ``C Σ_i CE_i + ½ ‖W‖²``, the same with ``C = 1 / (2 λ n)``. For two classes it has one row of weights, the
difference of the two rows here, each of which is ± half of it; so there ``C = 1 / (λ n)``. Labels are logistic
regressions side by side, unknown ones left out. Grades have equal rows of weights: gradient, step and preconditioner
are projected onto such heads, and ``‖W‖²`` counts all the rows.

The solver is Newton's method with conjugate gradients (Nocedal and Wright 2006, "Numerical Optimization", algorithm
7.1), in coordinates whose curvature is near 1: the features' principal axes, computed once for all λ, and in these, for
each output, the features less their mean and over the root of their variance, both weighted by the output's curvature
(a class's p(1 - p)), anew in each Newton step. These are the Hessian's diagonal block of the output, but for what
correlates along the axes. (A Kronecker product of the classes' mean covariance and the features' took more products
than no weighting at all.)

A λ's start is extrapolated from the last three heads as a parabola in log λ, where that lies lower than the last head.

It runs where the features are: NumPy's on the CPU, torch's on their device. Beside them it keeps one float32 copy, and
a float32 for each image and output; what is float64 is computed from some thousand images at a time. All that it asks
of the images are sums over them (``RowSums``), to which several processes can add theirs (``ranks.py``).

Ridge minimises ``1/n ‖XWᵀ + b - Y‖² + λ ‖W‖²``, Y the target's responses, such as one-hot labels: one solution in the
principal axes for each λ. Of numbers it is the head itself. An output whose response is unknown of some images has the
others' principal axes. How good a λ is for new images is estimated without any by generalised cross-validation (Golub,
Heath and Wahba 1979): ``1/n ‖residuals‖² / (1 - p/n)²``, p the trace of the matrix that makes fits of Y.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from headstart.targets.arrays import known
from headstart.targets.classes import Classes
from headstart.targets.target import Target, Values

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
LEAST_FREEDOM = 1e-6
"""Share of the images that a head must not fit by itself for generalised cross-validation: with less, residuals are
rounding, and the estimate is that of the head without weights."""
BLOCK_VALUES = 2**24
"""Values of the features, or of the logits, that are float64 at once."""

Array = Any
"""NumPy's or torch's: both have what the array API standard lists."""
Matrix = NDArray[np.float64]

logger = logging.getLogger(__name__)


def linear_path(
    features: Array, values: Values | Array, target: Target, l2s: Sequence[float], *, tolerance: float = TOLERANCE
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised loss at each λ: ``LinearSolver.path`` on the arguments of ``RowSums``."""
    return LinearSolver(RowSums(features, values, target), target).path(l2s, tolerance=tolerance)


def ridge_path(
    features: Array, values: Values | Array, target: Target, l2s: Sequence[float]
) -> Iterator[tuple[float, Matrix, Matrix]]:
    """Minimise the penalised squared error at each λ: ``LinearSolver.ridge`` on the arguments of ``RowSums``."""
    return LinearSolver(RowSums(features, values, target), target).ridge(l2s)


def principal_axes(features: Array) -> tuple[Array, Array, Array]:
    """Decompose the covariance of features, float (n, width).

    Returns:
        All float64: the mean (width,), the variances along the principal axes (width,), ascending, and the axes
        (width, width), one in each column.
    """
    return _principal_axes(RowSums(features, features, Classes(())))[1:]


def _principal_axes(sums: Callable[..., list[Array]], *output: Array) -> tuple[float, Array, Array, Array]:
    """Return the number of images and what ``principal_axes`` does; of those alone where an output is known."""
    number, total = sums("first_moments", *output)
    xp, mean = array_namespace(total), total / number
    (scatter,) = sums("scatter", mean, *output)
    variances, axes = xp.linalg.eigh(scatter / number)
    return float(number[0]), mean, xp.clip(variances, 0, None), axes


class RowSums:
    """The sums over images that the solver asks for; called with the name of a method and its arguments.

    ``features`` are float (n, width), NumPy's or torch's, ``values`` the target's of the same images, of the same kind
    and device. Heads and their changes are (outputs, width + 1), the last column is the bias. An ``output`` is an int64
    (1,): only the images of which its response is known count then.

    Values and gradients are float64, and so is the minimum. Products with the Hessian take most of the time and only
    give the direction: they are float32 until rounding makes a step fail, and float64 from then on.
    """

    def __init__(self, features: Array, values: Values | Array, target: Target) -> None:
        self.xp, self.features, self.values, self.target = array_namespace(features), features, values, target

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

    def _known_blocks(self, output: tuple[Array, ...]) -> Iterator[tuple[Array, Array]]:
        """Yield the features and the values of some images at a time, without those of which an output is unknown."""
        for rows, block in self._blocks(self.target.outputs if output else 0):
            values, known_rows = self.values[rows], slice(None)
            if output:
                known_rows = ~self.xp.isnan(self.target.responses(values, block)[:, int(output[0][0])])
            yield block[known_rows], values[known_rows]

    def first_moments(self, *output: Array) -> list[Array]:
        """Return the number of images (1,) and the sum of their features (width,)."""
        number, total = self._zeros(1), self._zeros(self.features.shape[1])
        for block, _ in self._known_blocks(output):
            number += len(block)
            total += self.xp.sum(block, axis=0)
        return [number, total]

    def scatter(self, mean: Array, *output: Array) -> list[Array]:
        """Return the sum of (x - mean)(x - mean)ᵀ, (width, width)."""
        total = self._zeros(len(mean), len(mean))
        for block, _ in self._known_blocks(output):
            centred = block - mean
            total += centred.T @ centred
        return [total]

    def response_moments(self, mean: Array, *output: Array) -> list[Array]:
        """Return the sums of 1, y and y² over the known responses y, (3, outputs), and of y(x - mean)."""
        moments, products = self._zeros(3, self.target.outputs), self._zeros(self.target.outputs, len(mean))
        for block, values in self._known_blocks(output):
            responses, is_known = known(self.target.responses(values, block))
            moments += self.xp.stack([self.xp.sum(each, axis=0) for each in (is_known, responses, responses**2)])
            products += responses.T @ (block - mean)
        return [moments, products]

    def keep(self, mean: Array, axes: Array, like: Array) -> list[Array]:
        """Keep the features along the axes, and room for the losses' states, in the type of ``like``; no sum."""
        self.mean, self.dtype = mean, like.dtype
        self.inputs = self._zeros(len(self.features), len(mean) + 1, dtype=self.dtype) + 1
        _, _, none = self.target.derivatives(self._zeros(0, self.target.outputs), self.values[:0])
        self.states = self._zeros(len(self.features), *none.shape[1:], dtype=self.dtype)
        for rows, block in self._blocks():
            self.inputs[rows, :-1] = self.xp.astype((block - mean) @ axes, self.dtype)
        return []

    def loss(self, head: Array) -> list[Array]:
        """Return the loss (1,) of a head for the centred features, and its gradient; keep the states."""
        xp, weight, bias = self.xp, head[:, :-1], head[:, -1]
        loss, gradient = self._zeros(1), self._zeros(*head.shape)
        for rows, block in self._blocks(self.target.outputs):
            inputs = block - self.mean
            losses, by_output, state = self.target.derivatives(inputs @ weight.T + bias, self.values[rows])
            loss += xp.sum(losses)
            self.states[rows] = xp.astype(state, self.dtype)
            gradient[:, :-1] += by_output.T @ inputs
            gradient[:, -1] += xp.sum(by_output, axis=0)
        return [loss, gradient]

    def _kept_blocks(self) -> Iterator[tuple[Array, Array]]:
        """Yield what ``keep`` keeps of some images at a time."""
        size = max(1, BLOCK_VALUES // max(self.inputs.shape[1], self.target.outputs))
        for begin in range(0, len(self.inputs), size):
            yield self.inputs[begin : begin + size], self.states[begin : begin + size]

    def curvature(self) -> list[Array]:
        """Return, of an output and an axis, the sums of its curvature times the feature along it, and its square."""
        first, second = (self._zeros(self.target.outputs, self.inputs.shape[1], dtype=self.dtype) for _ in range(2))
        for inputs, state in self._kept_blocks():
            weights = self.target.curvatures(state).T
            first += weights @ inputs
            second += weights @ inputs**2
        return [first, second]

    def product(self, change: Array) -> list[Array]:
        """Return the product of the loss's Hessian, at the last head, with a change."""
        by_head = self._zeros(*change.shape, dtype=self.dtype)
        for inputs, state in self._kept_blocks():
            by_head += self.target.hessian_product(state, inputs @ change.T).T @ inputs
        return [by_head]


class _Point(NamedTuple):
    """A head along the principal axes, its loss, and the gradient of that."""

    head: Array
    loss: float
    gradient: Array


class _Squares(NamedTuple):
    """What ridge needs of outputs that are known of the same images: all float64 but for the outputs, a slice.

    The number of images; of their features the mean, variances and axes as ``principal_axes`` has them; of their
    responses the means and variances (outputs,), and the covariances (outputs, width) with the features along the axes.
    """

    outputs: slice
    images: float
    mean: Array
    variances: Array
    axes: Array
    means: Array
    spreads: Array
    covariances: Array


class LinearSolver:
    """Linear heads along paths of λ on the same features, which are decomposed once.

    Attributes:
        loss: of the head that ``path`` or ``ridge`` yielded last, without the penalty.
        gcv: of the head that ``ridge`` yielded last, the loss by generalised cross-validation.
    """

    loss: float
    gcv: float | None = None

    def __init__(self, sums: Callable[..., list[Array]], target: Target) -> None:
        """``sums`` is a ``RowSums``, or adds those of several processes."""
        self._sums, self._target = sums, target
        self._count, self._mean, self._variances, self._axes = _principal_axes(sums)
        self._xp = array_namespace(self._mean)
        self._penalised = self._xp.concat([self._xp.ones_like(self._mean), 0 * self._mean[:1]])
        self._dtype: Any = None
        self._squares: list[_Squares] | None = None

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
        """Minimise the penalised loss at each λ, from the largest to the smallest; squared errors by ``ridge``.

        Where rounding or MAX_NEWTON_STEPS keeps the minimum out of reach, a warning is logged and the last point is
        yielded.

        Args:
            l2s: the values of λ, above 0, in any order.
            start: W and b to begin from; none: zeros.
            tolerance: how far above its minimum the objective may be, relative to it, by the solver's own estimate.

        Yields:
            λ, W float64 (outputs, width), b float64 (outputs,).
        """
        if self._target.link == "identity":
            yield from self.ridge(l2s)
            return
        if self._dtype is None:
            self._keep(self._xp.float32)
        heads = dict[float, Array]()
        point = self._evaluate(self._zeros() if start is None else self._in_axes(*start))
        for l2 in sorted(l2s, reverse=True):
            if len(heads) > 1:
                guess = self._evaluate(_extrapolate(heads, l2))
                lower = self._objective(guess, l2) < self._objective(point, l2)
                point = guess if lower else self._evaluate(point.head)
            point = self._minimise(point, l2, tolerance)
            heads = dict([*heads.items(), (l2, point.head)][-EXTRAPOLATED:])
            self.loss = point.loss
            yield l2, *self._of_features(point.head)

    def ridge(self, l2s: Sequence[float]) -> Iterator[tuple[float, Matrix, Matrix]]:
        """Minimise the penalised squared error at each λ; arguments and results are those of ``path``."""
        xp = self._xp
        self._squares = self._squares or list(self._decompose())
        for l2 in sorted(l2s, reverse=True):
            head, self.loss, self.gcv = self._zeros(), 0.0, 0.0
            for part in self._squares:
                share = part.images / self._count  # the loss is a mean over all images
                shrunk = part.variances + l2 / share
                weight = part.covariances / shrunk @ part.axes.T
                head[part.outputs, :-1], head[part.outputs, -1] = weight, part.means - weight @ part.mean
                explained = xp.sum(part.covariances**2 * (shrunk + l2 / share) / shrunk**2, axis=1)
                residual = share * float(xp.sum(xp.clip(part.spreads - explained, 0, None)))
                left = 1 - (1 + float(xp.sum(part.variances / shrunk))) / part.images
                self.loss += residual
                constant = share * float(xp.sum(part.spreads))
                self.gcv += residual / left**2 if left > LEAST_FREEDOM else constant
            yield l2, *_numpy(head[:, :-1], head[:, -1])

    def _decompose(self) -> Iterator[_Squares]:
        """Yield the parts of the squared error: all outputs that are known of all images, then each of the others."""
        xp = self._xp
        (known_of, sums, squares), products = self._sums("response_moments", self._mean)

        def part(outputs: slice, count: float, mean: Array, variances: Array, axes: Array) -> _Squares:
            means = sums[outputs] / count
            spreads, covariances = squares[outputs] / count - means**2, products[outputs] @ axes / count
            return _Squares(outputs, count, mean, variances, axes, means, spreads, covariances)

        complete = known_of == self._count
        if bool(xp.all(complete)):
            yield part(slice(None), self._count, self._mean, self._variances, self._axes)
            return
        for i in range(len(known_of)):
            outputs, features = slice(i, i + 1), (self._count, self._mean, self._variances, self._axes)
            if not bool(known_of[i]):
                continue
            if not bool(complete[i]):
                output = xp.asarray([i], device=device(self._mean))
                features = _principal_axes(self._sums, output)
                products[outputs] = self._sums("response_moments", features[1], output)[1][outputs]
            yield part(outputs, *features)

    def _zeros(self) -> Array:
        """Return the head that says nothing."""
        shape = self._target.outputs, len(self._penalised)
        return self._xp.zeros(shape, dtype=self._xp.float64, device=device(self._mean))

    def _in_axes(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> Array:
        """Return the head of a weight and a bias for the features as they are."""
        xp, like = self._xp, {"dtype": self._xp.float64, "device": device(self._mean)}
        by_feature, offset = xp.asarray(weight, **like), xp.asarray(bias, **like)
        return xp.concat([by_feature @ self._axes, (offset + by_feature @ self._mean)[:, None]], axis=1)

    def _of_features(self, head: Array) -> tuple[Matrix, Matrix]:
        """Return the weight and bias of a head for the features as they are."""
        weight = self._tied(head[:, :-1] @ self._axes.T)
        return _numpy(weight, head[:, -1] - weight @ self._mean)

    def _tied(self, weight: Array) -> Array:
        """Return the nearest weight whose rows are equal, where the target wants them so; else the weight itself."""
        return self._xp.zeros_like(weight) + self._xp.mean(weight, axis=0) if self._target.tied else weight

    def _tied_head(self, head: Array) -> Array:
        return self._xp.concat([self._tied(head[:, :-1]), head[:, -1:]], axis=1) if self._target.tied else head

    def _evaluate(self, head: Array) -> _Point:
        """Return the loss and its gradient; the next ``_newton_step`` is one from here."""
        concat = self._xp.concat
        loss, by_feature = self._sums("loss", concat([head[:, :-1] @ self._axes.T, head[:, -1:]], axis=1))
        gradient = concat([by_feature[:, :-1] @ self._axes, by_feature[:, -1:]], axis=1)
        return _Point(head, float(loss[0]) / self._count, self._tied_head(gradient / self._count))

    def _objective(self, point: _Point, l2: float) -> float:
        return point.loss + l2 * float(self._xp.sum(point.head**2 * self._penalised))

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
        variance = self._tied_head(xp.clip(second - first * centre, MIN_VARIANCE * second, None))
        scale = 1 / xp.sqrt(xp.clip(variance / count + penalty, MIN_CURVATURE, None))

        def unscaled(change: Array) -> Array:
            scaled = change * scale
            scaled[:, -1] -= xp.sum(scaled * centre, axis=1)
            return scaled

        def product(change: Array) -> Array:
            original = unscaled(change)
            (by_head,) = self._sums("product", original)
            by_head = by_head / count + penalty * original
            return self._tied_head((by_head - centre * by_head[:, -1:]) * scale)

        right = xp.astype(self._tied_head((centre * gradient[:, -1:] - gradient) * scale), self._dtype)
        step, left = conjugate_gradients(product, right, enough)
        if left == math.inf and self._dtype == xp.float32:
            self._keep(xp.float64)
            self._evaluate(head)
            return self._newton_step(head, gradient, l2, enough)
        change = unscaled(xp.astype(step, xp.float64))
        if self._target.link == "softmax":
            # A change that is equal for all classes changes no probability and only adds penalty: the minimum has none.
            change = change - xp.mean(change, axis=0)
        return change, left


def _numpy(weight: Array, bias: Array) -> tuple[Matrix, Matrix]:
    """Return NumPy's arrays, in memory of their own."""
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight), np.ascontiguousarray(bias)
    return weight.cpu().numpy(), bias.cpu().numpy()


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
