"""Figures on redrawn test sets: a bootstrap stratified by class, which draws whole groups where there are groups.

Drawing groups and not images keeps images of one patient, place or burst together, as they would be in another test
set (Davison & Hinkley 1997, sections 3.2 and 3.8). The figures are functions of sums over the images, so many test sets
cost one sparse matrix product. All models are evaluated on the same draws, so that their differences are paired.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest

from headstart.evaluation.metrics import Figures, figures

REPLICATES = 1000
LEVEL = 0.95
DRAWN_AT_ONCE = 50
"""Test sets whose draws are in memory together: 4 bytes for each image of each."""


def draws(labels: NDArray[np.int64], groups: Sequence[str] | None) -> Iterator[NDArray[np.float32]]:
    """Draw ``REPLICATES`` test sets with replacement, some at a time.

    As many units are drawn as there are, from each stratum its own number. A unit is a group or, without groups, an
    image; a stratum is a class, and groups that hold several classes are one stratum together. ``labels`` are int64
    (n,), ``groups`` n names, equal for images of one group, or None where each image is on its own.

    Yields:
        float32 (some, n): how often each image was drawn.
    """
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, first, unit = np.unique(names, return_index=True, return_inverse=True)
    mixed = np.zeros(len(first), bool)
    mixed[unit[labels != labels[first][unit]]] = True
    stratum = np.where(mixed, -1, labels[first])
    order = np.argsort(stratum, kind="stable")
    _, start, size = np.unique(stratum[order], return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)
    place = np.argsort(order)[unit]
    generator = np.random.default_rng(0)
    for done in range(0, REPLICATES, DRAWN_AT_ONCE):
        times = np.empty((min(DRAWN_AT_ONCE, REPLICATES - done), len(labels)), np.float32)
        for row in times:
            drawn = start + (generator.random(len(start)) * size).astype(np.int64)
            row[:] = np.bincount(drawn, minlength=len(start))[place]
        yield times


def replicate_figures(
    models: Mapping[str, csr_array], labels: NDArray[np.int64], groups: Sequence[str] | None, top_k: int
) -> dict[str, Figures]:
    """Compute each model's figures on the same redrawn test sets, from its contributions."""
    sums: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    for times in draws(labels, groups):
        for name, each in models.items():
            sums[name].append((each.T @ times.T).T)
    return {name: figures(np.concatenate(each), top_k) for name, each in sums.items()}


def interval(replicates: NDArray[np.float64]) -> list[float] | None:
    """Return the percentile interval at ``LEVEL``; None where all replicates are equal, which shows no spread."""
    if np.ptp(replicates) == 0:
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
