"""Images that are in one split and, perhaps altered a little, in another too.

Two measures find them, each beyond a threshold that follows from the data set itself and that, where its assumption
holds, a data set without copies would have a pair beyond in one case of twenty:

- The cosine of the features. What is no copy shows how near to it the nearest image of train may come: the logarithm
  of that distance, 1 - cosine, is roughly normal over the images held out. Its median and the median of the
  deviations below it stand for them, since copies among them hardly move those (Hampel 1974). Finds crops, mirrored and
  turned images.
- The Hamming distance of the perceptual hashes. Between different images it is roughly binomial, with as many bits as
  have that spread by independent chance (Daugman 2004, "How iris recognition works": the degrees of freedom). Finds
  grey and darkened copies, on whose features a backbone may not agree. Images that all look alike, such as digits,
  have few such bits, and then hardly any distance is small enough.

Exact copies are files with the same bytes.
"""

from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from headstart.data.dataset import SPLITS, evenly
from headstart.data.splits import TRAIN

FALSE_ALARMS = 0.05
SAMPLED = 2000
"""Images held out whose nearest image is looked for, at most, to choose the threshold."""
FEWEST = 20
"""Of them: fewer don't show how such distances spread, and then only equal features count as near."""
ROUNDING = 1e-6
BITS = 64
BLOCK = 2048
"""Rows at a time, so that a block of cosines takes 16 MiB."""

FOUND = np.dtype([("near", "?"), ("row", "i8"), ("other_row", "i8"), ("cosine", "f4"), ("hash_distance", "i8")])
Block = NDArray[np.float32]
Rows = NDArray[np.int64]


class DuplicatePair(NamedTuple):
    """Two rows that show the same, ``row`` in the earlier of the two splits; ``kind`` is ``exact`` or ``near``."""

    kind: str
    row: int
    other_row: int
    cosine: float
    hash_distance: int


@dataclass(frozen=True)
class Duplicates:
    """What is in two splits.

    Attributes:
        pairs: exact ones first, then by cosine; of very many the first.
        counts: of all pairs, by kind.
        cosine: the least of a near pair's, unless its hashes say it.
        hash_distance: the most bits between a near pair's hashes, unless its cosine says it; -1: no distance tells.
    """

    pairs: list[DuplicatePair]
    counts: dict[str, int]
    cosine: float
    hash_distance: int


@dataclass(frozen=True)
class _Images:
    """``features`` and ``bits`` (n, width), (n, 64) as unit vectors, ``contents`` uint64 (n,)."""

    features: Block
    bits: Block
    contents: NDArray[np.uint64]

    def cosines(self, rows: Rows, others: Rows) -> Block:
        return np.asarray(self.features[rows] @ self.features[others].T)

    def hash_distances(self, rows: Rows, others: Rows) -> Block:
        return np.asarray(BITS / 2 * (1 - self.bits[rows] @ self.bits[others].T))

    def same(self, rows: Rows, others: Rows) -> NDArray[np.bool_]:
        return np.asarray(self.contents[rows, None] == self.contents[others])


def find_duplicates(
    features: NDArray[np.float32],
    hashes: NDArray[np.uint64],
    contents: NDArray[np.uint64],
    splits: NDArray[np.int8],
    most: int,
) -> Duplicates:
    """Find the pairs across splits; takes memory for one more copy of the features, and time with their number squared.

    Args:
        features: float32 (n, width).
        hashes: uint64 (n,), perceptual.
        contents: uint64 (n,), from the hash of the image's bytes.
        splits: int8 (n,), indices into ``SPLITS``.
        most: pairs to list.
    """
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1)
    signs = (bits * np.float32(2) - 1) / np.float32(np.sqrt(BITS))
    images = _Images(np.asarray(features / lengths, np.float32), signs, contents)
    members = [np.flatnonzero(splits == split) for split in range(len(SPLITS))]
    train, held_out = members[TRAIN], np.flatnonzero(splits != TRAIN)
    least, furthest = _cosine_threshold(images, train, held_out), _hash_threshold(signs, members)
    kept, counts = np.empty(0, FOUND), {"exact": 0, "near": 0}
    for one, other in combinations(members, 2):
        for rows, others in product(_blocks(one), _blocks(other)):
            found = _found(images, rows, others, least, furthest)
            counts["near"] += (near := int(found["near"].sum()))
            counts["exact"] += len(found) - near
            kept = np.concatenate([kept, found])
            kept = kept[np.lexsort((-kept["cosine"], kept["near"]))[:most]]
    pairs = [DuplicatePair("near" if near else "exact", *pair) for near, *pair in kept.tolist()]
    return Duplicates(pairs, counts, least, furthest)


def _blocks(rows: Rows) -> list[Rows]:
    return np.split(rows, range(BLOCK, len(rows), BLOCK))


def _found(images: _Images, rows: Rows, others: Rows, least: float, furthest: int) -> NDArray[np.void]:
    """Return the pairs of two blocks, ``FOUND`` (n,)."""
    cosines, distances = images.cosines(rows, others), images.hash_distances(rows, others)
    same = images.same(rows, others)
    i, j = np.nonzero(same | (cosines >= least) | (distances <= furthest))
    found = np.empty(len(i), FOUND)
    found["near"], found["row"], found["other_row"] = ~same[i, j], rows[i], others[j]
    found["cosine"], found["hash_distance"] = cosines[i, j], distances[i, j]
    return found


def _cosine_threshold(images: _Images, train: Rows, held_out: Rows) -> float:
    """Return the cosine that the nearest of all images held out reaches in one data set without copies of twenty."""
    sample = evenly(held_out, SAMPLED)
    if len(sample) < FEWEST or not len(train):
        return 1 - ROUNDING
    nearest = np.full(len(sample), -1, np.float32)
    for (start, rows), others in product(enumerate(_blocks(sample)), _blocks(train)):
        cosines = np.where(images.same(rows, others), -1, images.cosines(rows, others))
        place = nearest[start * BLOCK :][: len(rows)]
        np.maximum(place, cosines.max(axis=1), out=place)
    logs = np.log(np.maximum(1 - nearest, ROUNDING))
    deviations = norm.isf(FALSE_ALARMS / len(held_out))
    middle = np.median(logs)
    spread = np.median(middle - logs[logs <= middle]) / norm.ppf(0.75)
    distance = np.exp(middle - deviations * spread)
    return float(1 - max(distance, ROUNDING))


def _hash_threshold(signs: Block, members: list[Rows]) -> int:
    """Return the bits to which different images' hashes come near in one data set of twenty; -1 where 0 do."""
    pairs, total, squares = 0, 0.0, 0.0
    for one, other in combinations([signs[rows].astype(np.float64) for rows in members], 2):
        pairs += len(one) * len(other)
        total += float(one.sum(axis=0) @ other.sum(axis=0))
        squares += float(((one.T @ one) * (other.T @ other)).sum())
    mean = total / max(1, pairs)
    variance = squares / max(1, pairs) - mean**2
    if variance <= 0:
        return -1
    apart = (1 - mean) / 2
    degrees = int(apart * (1 - apart) / (variance / 4))
    distances = np.arange(BITS + 1)
    expected = pairs * binom.cdf(np.ceil(distances * degrees / BITS), degrees, apart)
    return int((expected < FALSE_ALARMS).sum()) - 1
