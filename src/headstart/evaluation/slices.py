"""Where a classifier is worst: its accuracy by the values of the metadata columns that the source brings."""

from array import array
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.manifest import MANIFEST_COLUMNS
from headstart.evaluation.bootstrap import Units, fraction_interval

MAX_VALUES = 30
"""A column with more values is cut into quarters where they are numbers, and left out where they are not."""
SLICE_COLUMNS = ("column", "value", "pictures", "accuracy", "low", "high")


class Slice(NamedTuple):
    """Accuracy on the images with one value of a column, and its interval."""

    column: str
    value: str
    images: int
    accuracy: float
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


def compute_slices(columns: Mapping[str, MetadataColumn], correct: NDArray[np.bool_], units: Units) -> list[Slice]:
    """Return a classifier's accuracy by slice, in ascending order of the interval's upper end.

    ``correct``, bool (n,), says which images are classified correctly; the columns and ``units`` are of the same.
    """
    entries = []
    for column, texts in columns.items():
        names, places = texts.values()
        if not names:
            continue
        shape = len(units.stratum), len(names)
        of_any = places >= 0
        entry, hit = units.of_image[of_any] * len(names) + places[of_any], correct[of_any]
        by_unit = [np.bincount(each, minlength=shape[0] * shape[1]) for each in (entry[hit], entry)]
        unit_hits, unit_counts = (each.reshape(shape).astype(np.float32) for each in by_unit)
        drawn = [(times @ unit_hits, times @ unit_counts) for times in units.draws()]
        hits, counts = (np.concatenate(each) for each in zip(*drawn, strict=True))
        for i, value in enumerate(names):
            mask, some = places == i, counts[:, i] > 0
            low, high = fraction_interval(hits[some, i] / counts[some, i], units.independent(mask))
            entries.append(Slice(column, value, int(mask.sum()), round(float(correct[mask].mean()), 6), low, high))
    return sorted(entries, key=lambda each: (each.high, each.accuracy))
