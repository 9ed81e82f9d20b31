"""Thresholds of conformal prediction, which several targets share (Vovk et al. 2005)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, row_blocks
from headstart.core.json_value import JsonValue
from headstart.targets.target import Covered, Values

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


def covered_by_blocks(
    covered: Callable[[NDArray[Any], Values, Mapping[str, Any]], Covered],
    outputs: Matrix,
    values: Values,
    levels: Sequence[Mapping[str, Any]],
) -> list[Covered]:
    """Return what each conformal level gives of images, from what it gives of a block of them."""
    found = []
    for level in levels:
        parts = [covered(outputs[rows], values[rows], level) for rows in row_blocks(outputs.shape)]
        found.append(Covered(*map(np.concatenate, zip(*parts, strict=True))))
    return found


def checked_entry(
    level: JsonValue, methods: Sequence[str], least: float, most: float, parts: int | None = None
) -> dict[str, Any]:
    """Return an ``entry`` of a stranger's, with a threshold from ``least`` to ``most``, or a list of as many as parts.

    Raises:
        UserError: names the file and the key.
    """

    def limit(value: JsonValue) -> float | None:
        return None if value.value is None else value.number(least, most)

    given = level["threshold"]
    limits = limit(given) if parts is None else [limit(each) for each in given.list(parts, parts)]
    return {"method": level["method"].one_of(*methods), "level": level["level"].number(0, 1), "threshold": limits}
