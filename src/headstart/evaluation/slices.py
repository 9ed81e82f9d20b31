"""Where a model is worst: its mean score by the values of the metadata columns that the source brings."""

from array import array
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.manifest import MANIFEST_COLUMNS
from headstart.evaluation.bootstrap import Units, fraction_interval, interval

MAX_VALUES = 30
"""A column with more values is cut into quarters where they are numbers, and left out where they are not."""


class Slice(NamedTuple):
    """The mean score of the images with one value of a column, and its interval."""

    column: str
    value: str
    images: int
    score: float
    low: float
    high: float


class MetadataColumn:
    """A column of text, added image by image. It takes a byte an image, 8 where it has many values that are numbers."""

    def __init__(self) -> None:
        self._codes_of = {"": 0}
        self._codes, self._numbers = array("b"), array("d")
        self._has_few, self._is_numeric = True, True

    def add(self, text: str) -> None:
        """Add the next image's value; of an empty one the image is in no slice."""
        if self._has_few:
            self._codes.append(self._codes_of.setdefault(text, len(self._codes_of)))
            if len(self._codes_of) > MAX_VALUES + 1:
                self._has_few = False
                self._add_numbers(self._codes_of)
                if self._is_numeric:
                    self._numbers = array("d", np.array(self._numbers)[np.array(self._codes)].tobytes())
        elif self._is_numeric:
            self._add_numbers([text])

    def _add_numbers(self, texts: Iterable[str]) -> None:
        try:
            self._numbers.extend(float(text) if text else np.nan for text in texts)
        except ValueError:
            self._is_numeric = False

    def values(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the names of the column's values, or ranges of values, and each image's place in them, -1 for none."""
        if self._has_few:
            names = sorted(set(self._codes_of) - {""})
            places = np.full(len(self._codes_of), -1)
            places[[self._codes_of[name] for name in names]] = np.arange(len(names))
            return (names if len(names) > 1 else []), places[np.array(self._codes)]
        if not self._is_numeric:
            return [], np.empty(0, np.int64)
        numbers = np.array(self._numbers)
        ends = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
        names = [f"{low:g} to {high:g}" for low, high in pairwise(ends)]
        places = np.minimum(np.searchsorted(ends, numbers, side="right"), len(names)) - 1  # the last has both ends
        return names, np.where(np.isnan(numbers), -1, places)


def read_metadata(rows: Iterable[Mapping[str, str]]) -> dict[str, MetadataColumn]:
    """Read the columns that the source brings from rows of the manifest."""
    columns: dict[str, MetadataColumn] = {}
    for row in rows:
        columns = columns or {name: MetadataColumn() for name in row if name not in MANIFEST_COLUMNS}
        for name, column in columns.items():
            column.add(row[name])
    return columns


def slice_columns(scored: str) -> tuple[str, ...]:
    """Return the columns of the table of slices, of a measure's name."""
    return ("column", "value", "pictures", scored, "low", "high")


def compute_slices(
    columns: Mapping[str, MetadataColumn], scores: NDArray[Any], units: Units, sign: int = 1
) -> list[Slice]:
    """Return a model's mean score by slice, the surely worst first: in ascending order of the interval's upper end.

    ``scores``, bool or float64 (n,), are those of the images; the columns and ``units`` are of the same. With the sign
    -1 less is better, and the order is the descending one of the lower end.
    """
    entries = []
    for column, texts in columns.items():
        names, places = texts.values()
        if not names:
            continue
        shape = len(units.stratum), len(names)
        of_any = places >= 0
        entry = units.of_image[of_any] * len(names) + places[of_any]
        by_unit = [np.bincount(entry, each, shape[0] * shape[1]) for each in (scores[of_any], None)]
        unit_sums, unit_counts = (each.reshape(shape).astype(np.float32) for each in by_unit)
        drawn = [(times @ unit_sums, times @ unit_counts) for times in units.draws()]
        sums, counts = (np.concatenate(each) for each in zip(*drawn, strict=True))
        for i, value in enumerate(names):
            mask, some = places == i, counts[:, i] > 0
            replicates, mean = sums[some, i] / counts[some, i], round(float(scores[mask].mean()), 6)
            if scores.dtype == bool:
                low, high = fraction_interval(replicates, units.independent(mask))
            else:
                low, high = interval(replicates) or [mean, mean]
            entries.append(Slice(column, value, int(mask.sum()), mean, low, high))
    return sorted(entries, key=lambda each: (sign * (each.high if sign > 0 else each.low), sign * each.score))
