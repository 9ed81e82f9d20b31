"""Figures on redrawn test sets: a bootstrap stratified by class or the like, which draws groups whole if there are any.

Drawing groups and not images keeps images of one patient, place or burst together, as they would be in another test
set (Davison & Hinkley 1997, sections 3.2 and 3.8). Most figures are functions of sums over the images, so many test
sets cost one matrix product. All models are evaluated on the same draws, so that their differences are paired.

Redrawing millions one by one would be dear, and change nothing that is seen: sums over many draws are normal, and what
counts is their variance. So beyond ``MAX_UNITS`` several of a stratum, at random, are drawn together: the variance
between the sums of random groups is that of their members (Wolter 2007, chapter 2). Of 10⁵ it is known to 0.5 %, where
the ends of an interval from 1,000 draws have an error of about 4 % of its half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.targets.target import Figures, Strata, Tally

REPLICATES = 1000
LEVEL = 0.95
DRAWN_AT_ONCE = 50
"""Test sets whose draws are in memory together: 4 bytes for each unit of each."""
MAX_UNITS = 100_000
LEAST_UNITS = 100
"""Units of a stratum that has as many images or groups, however rare it is among the others."""

Groups = NDArray[np.generic] | Sequence[str]


@dataclass(frozen=True)
class Units:
    """What the bootstrap draws: images, or groups of them.

    Attributes:
        of_image: int64 (n,), the number of each image's unit.
        stratum: int64 (units,): from each stratum as many units are drawn as it has.
        groups: (n,), the group of each image; None where each is on its own.
    """

    of_image: NDArray[np.int64]
    stratum: NDArray[np.int64]
    groups: NDArray[np.generic] | None

    def independent(self, images: NDArray[np.bool_] | slice = slice(None)) -> int:
        """Return how many images on their own, or groups, there are among some images."""
        return len(self.of_image[images]) if self.groups is None else len(np.unique(self.groups[images]))

    def draws(self) -> Iterator[NDArray[np.float32]]:
        """Draw ``REPLICATES`` test sets with replacement, some at a time; the same at each call.

        Yields:
            float32 (some, units): how often each unit was drawn.
        """
        order = np.argsort(self.stratum, kind="stable")
        _, start, size = np.unique(self.stratum[order], return_index=True, return_counts=True)
        start, size = np.repeat(start, size), np.repeat(size, size)
        place = np.argsort(order)
        generator = np.random.default_rng(0)
        for done in range(0, REPLICATES, DRAWN_AT_ONCE):
            times = np.empty((min(DRAWN_AT_ONCE, REPLICATES - done), len(order)), np.float32)
            for row in times:
                drawn = start + (generator.random(len(start)) * size).astype(np.int64)
                row[:] = np.bincount(drawn, minlength=len(start))[place]
            yield times


def strata_of(strata: Strata, images: int) -> NDArray[np.int64]:
    """Return the stratum of each of so many images, int64 (n,): -1 of none; all equal where an image is in several."""
    of_image = np.full(images, -1)
    if len(np.unique(strata.images)) == len(strata.images):
        of_image[strata.images] = strata.groups
    return of_image


def assign_units(labels: NDArray[np.int64], groups: Groups | None) -> Units:
    """Assign images to units: each to its own, or that of its group, of which many are joined.

    A stratum is a class, or what ``strata_of`` returns; groups that hold several are one stratum together.
    ``labels`` are int64 (n,), ``groups`` n names or numbers, equal for images of one group, or None where each image is
    on its own.
    """
    if groups is None:
        return Units(*_joined(np.arange(len(labels)), labels), None)
    names = np.asarray(groups)
    _, first, unit = np.unique(names, return_index=True, return_inverse=True)
    mixed = np.zeros(len(first), bool)
    mixed[unit[labels != labels[first][unit]]] = True
    return Units(*_joined(unit, np.where(mixed, -1, labels[first])), names)


def _joined(unit: NDArray[np.int64], stratum: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join units of a stratum, equally many at random, until about ``MAX_UNITS`` are left; return both arguments so."""
    total = len(stratum)
    if total <= MAX_UNITS:
        return unit, stratum
    order = np.argsort(stratum + np.random.default_rng(0).random(total))  # in each stratum at random
    strata, sizes = np.unique(stratum, return_counts=True)
    most = np.maximum(LEAST_UNITS, MAX_UNITS * sizes // total)
    together = -(-sizes // most)
    left = -(-sizes // together)
    joined = np.empty_like(stratum)
    joined[order] = np.concatenate(
        [
            end - count + np.arange(size) // each
            for end, count, size, each in zip(left.cumsum(), left, sizes, together, strict=True)
        ]
    )
    return joined[unit], np.repeat(strata, left)


def replicate_figures(tally: Tally, units: Units) -> Figures:
    """Compute a model's figures on the redrawn test sets, the same for each model, from its tally by unit."""
    drawn = [tally.figures(times) for times in units.draws()]
    return {name: np.concatenate([figures[name] for figures in drawn]) for name in drawn[0]}


def replicate_means(each: NDArray[Any], units: Units) -> NDArray[np.float64]:
    """Return the mean of a number of each image, (n,), on the redrawn test sets; NaN is of no image."""
    there = ~np.isnan(each)
    sums, counts = (
        np.bincount(units.of_image, weights, len(units.stratum)) for weights in (np.where(there, each, 0), there)
    )
    drawn = [(times @ sums, times @ counts) for times in units.draws()]
    total, count = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))


def interval(replicates: NDArray[np.float64]) -> list[float] | None:
    """Return the percentile interval at ``LEVEL``; None where all replicates are equal, which shows no spread.

    NaN, of a test set on which the figure is not defined, does not count.
    """
    replicates = replicates[~np.isnan(replicates)]
    if not len(replicates) or np.ptp(replicates) == 0:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return [round(float(low), 6), round(float(high), 6)]


def exact_interval(hits: int, units: int) -> list[float]:
    """Return Clopper and Pearson's exact interval of a fraction, at ``LEVEL``."""
    exact = binomtest(hits, units).proportion_ci(LEVEL)
    return [round(float(exact.low), 6), round(float(exact.high), 6)]


def fraction_interval(replicates: NDArray[np.float64], units: int) -> list[float]:
    """Return the interval of a fraction of ``units``: the exact one where all or none of them are correct."""
    return interval(replicates) or exact_interval(round(float(replicates[0]) * units), units)
