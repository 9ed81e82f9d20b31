"""Where a classifier is worst: its accuracy by the values of the metadata columns that the source brings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.evaluation.bootstrap import draws, fraction_interval

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


def compute_slices(
    columns: Mapping[str, Sequence[str]],
    correct: NDArray[np.bool_],
    labels: NDArray[np.int64],
    groups: Sequence[str] | None,
) -> list[Slice]:
    """Return a classifier's accuracy by slice, in ascending order of the interval's upper end.

    The columns have n values each, as text; empty ones are in no slice. ``labels`` and ``groups`` are as for
    ``bootstrap.draws``; ``correct``, bool (n,), says which images are classified correctly.
    """
    members = {(column, value): mask for column in columns for value, mask in _values(columns[column])}
    if not members:
        return []
    masks = np.stack(list(members.values()), axis=1).astype(np.float32)
    drawn = [(times @ (masks * correct[:, None]), times @ masks) for times in draws(labels, groups)]
    hits, counts = (np.concatenate(each) for each in zip(*drawn, strict=True))
    entries = []
    for i, (column, value) in enumerate(members):
        mask = masks[:, i] > 0
        units = mask.sum() if groups is None else len(set(np.asarray(groups)[mask]))
        some = counts[:, i] > 0
        low, high = fraction_interval(hits[some, i] / counts[some, i], int(units))
        entries.append(Slice(column, value, int(mask.sum()), round(float(correct[mask].mean()), 6), low, high))
    return sorted(entries, key=lambda each: (each.high, each.accuracy))


def _values(texts: Sequence[str]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return a column's values, or ranges of values, with a mask of the images that have each."""
    values = np.asarray(texts, object)
    names = sorted(set(texts) - {""})
    if len(names) <= MAX_VALUES:
        return [(name, values == name) for name in names] if len(names) > 1 else []
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return []
    ends = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    return [
        (f"{low:g} to {high:g}", (numbers >= low) & ((numbers < high) | (high == ends[-1]) & (numbers == high)))
        for low, high in pairwise(ends)
    ]
