"""Random numbers that are a pure function of what they are for, whatever the process, worker or order that asks.

SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") over a key such as
(seed, epoch, image id): whole batches at once, where making a generator for each image would cost more than the crop.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(count: int, *key: ArrayLike) -> NDArray[np.float64]:
    """Draw uniform numbers in [0, 1).

    Args:
        count: how many for each key.
        key: non-negative integers or arrays of n of them, broadcast against each other: the key of each row.

    Returns:
        float64 (n, count), with 53 random bits.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mixed(state ^ _mixed(np.atleast_1d(np.asarray(part, np.uint64)) + _GAMMA))
    draws = _mixed(state[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))
    return np.asarray((draws >> np.uint64(11)) * 2.0**-53, np.float64)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits: a bijection whose every output bit depends on every input bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MULTIPLIERS[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _MULTIPLIERS[1]
    return bits ^ (bits >> np.uint64(31))
