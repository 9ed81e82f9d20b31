"""Classes: one of several, learned by the cross-entropy of softmax."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from headstart.core.text import normalize_label
from headstart.targets.arrays import Array, log_softmax
from headstart.targets.target import PLAIN, LossKind, LossOptions, Strata

FOCUS = 2.0
"""The exponent γ of the focal loss (Lin et al. 2017)."""


class ClassesReader:
    """Reads the one class of an image."""

    is_name = True

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns

    def read(self, cells: Sequence[Any]) -> str:
        """Return the name of the class."""
        (cell,) = cells
        text = "" if cell is None else normalize_label(str(cell))
        if not text:
            raise ValueError("has no class: the cell is empty")
        return text

    def target(self, texts: Iterable[str]) -> "Classes":
        """Return the classes in the order of their names."""
        return Classes(sorted(texts))


@dataclass(frozen=True)
class Classes:
    """One of several classes; ``values`` are int64 (n,), from 0 in the order of the names."""

    names: Sequence[str]
    kind: ClassVar[str] = "class"
    losses_known: ClassVar[tuple[LossKind, ...]] = ("auto", "focal")
    tied: ClassVar[bool] = False

    @property
    def units(self) -> Sequence[str]:
        """Classes have no units."""
        return [""] * len(self.names)

    @property
    def outputs(self) -> int:
        """A logit for each class."""
        return len(self.names)

    def spec(self) -> dict[str, Any]:
        """Return nothing: the names say it all."""
        return {}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> int:
        """Return the number of a class, from 0."""
        return self._number[text]

    def values(self, texts: Iterable[str], count: int) -> NDArray[np.int64]:
        """Return the values of images, int64 (n,)."""
        return np.fromiter(map(self.encode, texts), np.int64, count)

    def strata(self, values: NDArray[np.int64]) -> Strata:
        """Return the images of each class."""
        return Strata(self.names, np.arange(len(values)), values)

    def trained(self, values: NDArray[np.int64]) -> "Classes":  # noqa: ARG002  (``Strata`` has what is wrong with them)
        """Return itself."""
        return self

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return the cross-entropy, with label smoothing (Szegedy et al. 2016), weights, or focused on hard images."""
        xp = array_namespace(outputs)
        if options.shift is not None:
            outputs = outputs + options.shift
        log_probabilities = log_softmax(outputs)
        picked = xp.take_along_axis(log_probabilities, values[:, None], axis=1)[:, 0]
        losses = -picked
        if options.smoothing:
            losses = losses * (1 - options.smoothing) - options.smoothing * xp.mean(log_probabilities, axis=1)
        if options.kind == "focal":
            losses = losses * (1 - xp.exp(picked)) ** FOCUS
        return losses if options.weights is None else losses * options.weights[values]

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the cross-entropy, its gradient, and the probabilities as the state."""
        xp = array_namespace(outputs)
        log_probabilities = log_softmax(outputs)
        state = xp.exp(log_probabilities)
        gradient = xp.asarray(state, copy=True)
        gradient[xp.arange(len(values), device=outputs.device), values] -= 1
        return -xp.take_along_axis(log_probabilities, values[:, None], axis=1)[:, 0], gradient, state

    def curvatures(self, state: Array) -> Array:
        """Return p(1 - p)."""
        return state * (1 - state)

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return (diag p - p pᵀ) times the change."""
        xp = array_namespace(state)
        weighted = change * state
        return weighted - state * xp.sum(weighted, axis=1, keepdims=True)

    def start_bias(self, values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the logarithm of each class's frequency."""
        return np.asarray(self.log_priors(values), np.float64)

    def loss_weights(self, values: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return ``n / (classes · n_class)``, as scikit-learn's ``balanced``: the mean over the images is 1."""
        counts = np.bincount(values, minlength=len(self.names))
        return np.asarray(len(values) / (len(self.names) * np.maximum(counts, 1)), np.float32)

    def log_priors(self, values: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logarithm of each class's frequency."""
        counts = np.bincount(values, minlength=len(self.names))
        return np.asarray(np.log(np.maximum(counts, 0.5) / len(values)), np.float32)

    def rarities(self, values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return one over the count of the image's class."""
        return np.asarray(1 / np.bincount(values, minlength=len(self.names))[values], np.float64)
