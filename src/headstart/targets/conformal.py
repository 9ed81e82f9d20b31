"""Thresholds of conformal prediction, which several targets share (Vovk et al. 2005)."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.9, 0.95)


def threshold(scores: NDArray[np.float64], level: float) -> float:
    """Return the ⌈(n + 1) · level⌉-th smallest of n scores; infinity where there are too few for the level."""
    rank = math.ceil((len(scores) + 1) * level)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf


def entry(method: str, level: float, limits: float | Iterable[float]) -> dict[str, Any]:
    """Return a conformal level as JSON has it: null for infinity."""
    if isinstance(limits, float):
        return {"method": method, "level": level, "threshold": limits if math.isfinite(limits) else None}
    each = [limit if math.isfinite(limit) else None for limit in limits]
    return {"method": method, "level": level, "threshold": each}
