"""Some of many, without chance."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)


def evenly(rows: NDArray[Kind], most: int) -> NDArray[Kind]:
    """Choose at most so many of (n, ...), evenly from the first to the last; the same places for the same n."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
