"""Temperatures by which outputs are divided, so that probabilities are as often right as they say (Guo et al. 2017)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headstart.core.json_value import JsonValue

TEMPERATURES = np.geomspace(0.05, 20.0, 129)
"""Neighbours differ by a twentieth: the loss is flat at its minimum, and off by some 0.03 % at worst."""


def best_temperatures(loss: Callable[[float], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return for each part of a target the temperature with the lowest loss, float64 (parts,).

    ``loss`` returns (parts,) for outputs that are divided by a temperature. Where the lowest loss is at an end of
    ``TEMPERATURES``, as where every image is right, no temperature is best: then it is 1, which leaves the outputs as
    they are.
    """
    losses = np.stack([loss(temperature) for temperature in TEMPERATURES.tolist()])
    best = losses.argmin(axis=0)
    inside = (best > 0) & (best < len(TEMPERATURES) - 1)
    return np.where(inside, np.round(TEMPERATURES[best], 4), 1.0)


def checked_temperature(value: JsonValue) -> float:
    """Return a stranger's temperature; raises UserError that names the file and the key."""
    return value.number(1e-3, 1e3)
