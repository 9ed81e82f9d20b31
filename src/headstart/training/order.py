"""The order of an epoch's images, a function of (seed, epoch) that is computed for the positions of a batch alone."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.training.augment import mixed_bits, random_bits

Indices = NDArray[np.int64]

ORDER_STREAM = 2
"""Separates the random numbers of the order from those of images and of mixtures."""
ROUNDS = 16
"""Of the Feistel network, an even number: with fewer, small sets are not shuffled evenly."""
FRACTION_BITS = 30
"""Of a place: lengths on the line of ``WeightedDraws`` are whole numbers, so that nothing is rounded."""


def permuted(values: Indices, count: int, *key: ArrayLike) -> Indices:
    """Permute the integers below ``count``: for each key another bijection, without an array of ``count``.

    A Feistel network, on two digits of about √count values each in place of halves of bits; what falls outside is
    permuted again until it is inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains": generalized
    Feistel, cycle walking).

    Args:
        values: int64 (n,), from 0 to ``count`` - 1.
        count: how many integers are permuted, at least 1.
        key: of ``random_bits``: non-negative integers or arrays of n of them, the key of each value.
    """
    base = math.isqrt(count - 1) + 1
    sizes, keys = (-(-count // base), base), random_bits(ROUNDS, *key)
    result = _feistel(values.astype(np.uint64), sizes, keys)
    while len(outside := np.flatnonzero(result >= count)):
        result[outside] = _feistel(result[outside], sizes, keys[outside] if len(keys) > 1 else keys)
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], sizes: tuple[int, int], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute the integers below the product of ``sizes``, by keys (n, ROUNDS) or (1, ROUNDS)."""
    high, low = np.divmod(values, np.uint64(sizes[1]))
    for i in range(ROUNDS):
        high, low = low, (high + (mixed_bits(low ^ keys[:, i]) >> np.uint64(32))) % np.uint64(sizes[i % 2])
    return high * np.uint64(sizes[1]) + low


@dataclass(frozen=True)
class EpochOrder:
    """The order of ``count`` images: all shuffled with all, or window after window.

    With one window an epoch is a permutation. With more, each window has as many of the store's blocks, runs of
    ``block`` images that lie one after the other, and is shuffled by itself: a reader that fetches the next window's
    blocks reads in long runs, and needs memory for two windows. The store is cut into as many strata as a window has
    blocks, and in each epoch every window gets one block of each stratum, drawn without replacement: stores are often
    sorted by class, and so each window has about the classes of the whole. Where the cuts are differs by epoch.
    """

    count: int
    seed: int
    windows: int = 1
    block: int = 1

    @property
    def window(self) -> int:
        """The images of a window; those that do not exist, less than a block of each window, are walked past."""
        return self.block * -(-self.count // (self.windows * self.block))

    def images(self, epoch: int, positions: Indices) -> Indices:
        """Return the images, from 0, at these positions of an epoch; int64 (n,) both."""
        images, outside = positions.copy(), np.ones(len(positions), bool)
        while outside.any():
            window, place = np.divmod(images[outside], self.window)
            place = permuted(place, self.window, *self._key(epoch, 0), window)
            images[outside] = self._stored(epoch, window, place)
            outside = images >= self.count
        return self._rotated(epoch, images)

    def next_window(self, epoch: int, positions: Indices) -> Indices:
        """Return the images to fetch at these positions of an epoch: the next window's, block after block."""
        window, place = np.divmod(positions, self.window)
        epochs, window = epoch + (window + 1) // self.windows, (window + 1) % self.windows
        return self._rotated(epochs, self._stored(epochs, window, place))

    def _stored(self, epoch: ArrayLike, window: Indices, place: Indices) -> Indices:
        """Return what is at a place of a window before it is shuffled: from ``count`` on there is no image."""
        if self.windows == 1:
            return place
        stratum, within = np.divmod(place, self.block)
        block = stratum * self.windows + permuted(window, self.windows, *self._key(epoch, 1), stratum)
        return block * self.block + within

    def _rotated(self, epoch: ArrayLike, images: Indices) -> Indices:
        shift = random_bits(1, *self._key(epoch, 2))[:, 0] % np.uint64(self.count)
        return (images + shift.astype(np.int64)) % self.count

    def _key(self, epoch: ArrayLike, use: int) -> tuple[Any, ...]:
        return ORDER_STREAM, self.seed, epoch, use


class WeightedDraws:
    """Which image is at each place of an epoch whose images are drawn in proportion to weights.

    Systematic sampling (Madow and Madow 1944): on a line on which each image has a length of its share of the ``n``
    places, a place is a point, all of them moved by a fraction that is drawn from (seed, epoch). So an image occurs as
    often as expected, rounded up or down, and the expectation over the epochs is exact. The place of a position is
    ``EpochOrder``'s: neighbouring places are neighbouring images, so that windows are read in runs as ever; in these,
    common images are left out and rare ones come again.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        """Lay the images on the line; ``weights`` are float64 (n,), positive."""
        ends = np.cumsum(weights)
        ends = np.rint(ends / ends[-1] * (len(ends) << FRACTION_BITS)).astype(np.int64)
        self._edges, self._seed = np.concatenate([[0], ends]), seed

    def at(self, epoch: int, places: Indices) -> tuple[Indices, Indices]:
        """Return the images at these places of an epoch, from 0, and how often each was at a lower one; int64 (n,)."""
        bits = random_bits(1, ORDER_STREAM, self._seed, epoch, 3)[0, 0] >> np.uint64(64 - FRACTION_BITS)
        moved, one = int(bits), 1 << FRACTION_BITS
        images = np.searchsorted(self._edges[1:], places * one + moved, side="right")
        first = -((moved - self._edges[images]) // one)  # the lowest place on the image's length
        return images, places - first
