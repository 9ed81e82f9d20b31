"""Duplicates across the splits: images that are in one split and, perhaps slightly altered, in another too.

Exact duplicates are files with the same bytes. Two measures find near ones, each beyond a threshold that is derived
from the data set itself. Where the measure's assumption holds, one in twenty data sets without duplicates would have a
pair beyond it:

- The cosine of the features. The images held out that are no duplicates show how near the nearest training image comes
  by chance: the logarithm of that distance, 1 - cosine, is roughly normal. Its median, and the median deviation below
  it, describe that distribution, since duplicates among them hardly move either (Hampel 1974). Finds crops, mirrored
  and rotated images.
- The Hamming distance of the perceptual hashes. Between different images it is roughly binomial, with as many degrees
  of freedom as its variance implies (Daugman 2004, "How iris recognition works"). Finds grey and darkened copies, whose
  features may differ. Images that all look alike, such as digits, have few degrees of freedom, and then hardly any
  distance is small enough.
"""

from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri  # of scipy.stats, which takes half a second to import, the two that are used

from headstart.data.dataset import SPLITS, evenly
from headstart.data.splits import TRAIN

FALSE_ALARMS = 0.05
"""The fraction of data sets without duplicates in which a measure would list a pair."""
MAX_SAMPLED = 2000
"""Images held out whose nearest training image is computed, at most, to choose the threshold."""
MIN_SAMPLED = 20
"""With fewer their distances' spread is unknown, and only equal features count as near."""
ROUNDING = 1e-6
HASH_BITS = 64
BLOCK = 2048
"""Rows at a time, so that a block of cosines takes 16 MiB."""

PAIR_DTYPE = np.dtype([("near", "?"), ("row", "i8"), ("other_row", "i8"), ("cosine", "f4"), ("hash_distance", "i8")])
UnitVectors = NDArray[np.float32]
"""Float32 (n, width), each row of length 1."""
RowNumbers = NDArray[np.int64]


class DuplicatePair(NamedTuple):
    """Two rows with the same image, ``row`` in the earlier of the two splits; ``kind`` is ``exact`` or ``near``."""

    kind: str
    row: int
    other_row: int
    cosine: float
    hash_distance: int


@dataclass(frozen=True)
class Duplicates:
    """The duplicates across the splits, and the thresholds; a near pair is beyond at least one of them.

    Attributes:
        pairs: exact ones first, then by falling cosine; no more than were asked for.
        counts: of all pairs, by kind.
        cosine: the threshold of the cosine.
        hash_distance: the threshold of the hashes' distance in bits; -1 where no distance is small enough.
    """

    pairs: list[DuplicatePair]
    counts: dict[str, int]
    cosine: float
    hash_distance: int


def find_duplicates(
    features: NDArray[np.float32],
    hashes: NDArray[np.uint64],
    contents: NDArray[np.uint64],
    splits: NDArray[np.int8],
    max_pairs: int,
) -> Duplicates:
    """Find the pairs across splits, and list at most so many; time is quadratic in the images.

    Memory is needed for a second copy of the features, float32 (n, width). ``hashes`` are perceptual, ``contents`` of
    the files' bytes, ``splits`` indices into ``SPLITS``, all (n,).
    """
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1)
    signs = (bits * np.float32(2) - 1) / np.float32(np.sqrt(HASH_BITS))
    unit = np.asarray(features / lengths, np.float32)
    members = [np.flatnonzero(splits == split) for split in range(len(SPLITS))]
    min_cosine = _cosine_threshold(unit, contents, members[TRAIN], np.flatnonzero(splits != TRAIN))
    max_distance = _hash_threshold(signs, members)
    kept, counts = np.empty(0, PAIR_DTYPE), {"exact": 0, "near": 0}
    for one, other in combinations(members, 2):
        for rows, others in product(_blocks(one), _blocks(other)):
            cosines, distances = unit[rows] @ unit[others].T, HASH_BITS / 2 * (1 - signs[rows] @ signs[others].T)
            same = contents[rows, None] == contents[others]
            i, j = np.nonzero(same | (cosines >= min_cosine) | (distances <= max_distance))
            pairs = np.empty(len(i), PAIR_DTYPE)
            pairs["near"], pairs["row"], pairs["other_row"] = ~same[i, j], rows[i], others[j]
            pairs["cosine"], pairs["hash_distance"] = cosines[i, j], distances[i, j]
            counts["near"] += (near := int(pairs["near"].sum()))
            counts["exact"] += len(pairs) - near
            kept = np.concatenate([kept, pairs])
            kept = kept[np.lexsort((-kept["cosine"], kept["near"]))[:max_pairs]]
    listed = [DuplicatePair("near" if near else "exact", *pair) for near, *pair in kept.tolist()]
    return Duplicates(listed, counts, min_cosine, max_distance)


def _blocks(rows: RowNumbers) -> list[RowNumbers]:
    return np.split(rows, range(BLOCK, len(rows), BLOCK))


def _cosine_threshold(
    unit: UnitVectors, contents: NDArray[np.uint64], train: RowNumbers, held_out: RowNumbers
) -> float:
    """Return the cosine that the nearest image held out exceeds in one of twenty data sets without duplicates."""
    sample = evenly(held_out, MAX_SAMPLED)
    if len(sample) < MIN_SAMPLED or not len(train):
        return 1 - ROUNDING
    nearest = np.full(len(sample), -1, np.float32)
    for others in _blocks(train):
        cosines = np.where(contents[sample, None] == contents[others], -1, unit[sample] @ unit[others].T)
        nearest = np.maximum(nearest, cosines.max(axis=1))
    logs = np.log(np.maximum(1 - nearest, ROUNDING))
    deviations = -ndtri(FALSE_ALARMS / len(held_out))
    middle = np.median(logs)
    spread = np.median(middle - logs[logs <= middle]) / ndtri(0.75)
    distance = np.exp(middle - deviations * spread)
    return float(1 - max(distance, ROUNDING))


def _hash_threshold(signs: UnitVectors, members: list[RowNumbers]) -> int:
    """Return the distance in bits that one of twenty data sets without duplicates has a pair within; -1 if none is."""
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
    distances = np.arange(HASH_BITS + 1)
    expected = pairs * bdtr(np.ceil(distances * degrees / HASH_BITS), degrees, apart)
    return int((expected < FALSE_ALARMS).sum()) - 1
