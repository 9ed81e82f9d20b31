"""What the targets share whose images have names: classes, labels and grades."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from headstart.targets.target import LossKind, Measure, Strata, Values


class Named:
    """One of several names an image, as ``Target`` has it; ``Labels`` has its own values."""

    names: Sequence[str]
    measures: ClassVar[Mapping[str, Measure]]

    @property
    def units(self) -> Sequence[str]:
        """Names have no units."""
        return [""] * len(self.names)

    def spec(self) -> dict[str, Any]:
        """Return nothing: the names say it all."""
        return {}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> Any:
        """Return the number of a name, from 0."""
        return self._number[text]

    def values(self, texts: Iterable[str], count: int) -> Values:
        """Return the values of images, int64 (n,)."""
        return np.fromiter(map(self.encode, texts), np.int64, count)

    def strata(self, values: Values) -> Strata:
        """Return the images of each name."""
        return Strata(self.names, np.arange(len(values)), values)

    def breakdown(self, values: Values) -> list[Strata]:
        """Return the images of each name."""
        return [self.strata(values)]

    def trained(self, values: Values) -> Self:  # noqa: ARG002  (``Strata`` has what is wrong with them)
        """Return itself."""
        return self

    def with_loss(self, kind: LossKind) -> Self:  # noqa: ARG002  (all losses have the same outputs)
        """Return itself."""
        return self

    def measure(self, name: str) -> Measure:
        """Return one of the measures."""
        return self.measures[name]

    def ranked_within(self, top_k: int) -> Self:  # noqa: ARG002  (of classes)
        """Return itself."""
        return self

    def loss_weights(self, values: Values) -> NDArray[np.float32]:
        """Return ``n / (names · n_name)``, as scikit-learn's ``balanced``: the mean over the images is 1."""
        counts = np.bincount(values, minlength=len(self.names))
        return np.asarray(len(values) / (len(self.names) * np.maximum(counts, 1)), np.float32)

    def rarities(self, values: Values) -> NDArray[np.float64]:
        """Return one over the count of the image's name."""
        return np.asarray(1 / np.bincount(values, minlength=len(self.names))[values], np.float64)
