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

Up to ``ALL_PAIRS_UP_TO`` images the cosines of all pairs are computed. Of more images faiss finds the nearest ones in
the other splits, by random projections of the features (Johnson and Lindenstrauss 1984), and the cosines of these alone
are computed; docs/evaluation.md has how many of all pairs that finds. On macOS it is always all pairs: there pip's
faiss and torch are reported to crash in one process, since each brings its own OpenMP.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations, pairwise, product
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri  # of scipy.stats, which takes half a second to import, the two that are used

from headstart.core.progress import Progress
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
BLOCK_PAIRS = 2**20
"""Pairs of hashes at a time."""

ALL_PAIRS_UP_TO = 50_000
"""Images up to which the cosines of all pairs are computed."""
DIMENSIONS = 128
"""Of the projected features, of which the index keeps 16 bits each: 264 bytes for an image of the smaller split."""
SLACK = 1.7
"""A squared distance after the projection over that before; one in a million is larger (χ² / 128)."""
NEIGHBOURS = 10
"""Images in another split that are looked at for each image."""
CELLS_SEARCHED = 8
IMAGES_PER_CELL = 64
"""From which the cells' centres are computed; faiss asks for 39 to 256."""
MAX_IN_BUCKET = 1000
"""Images with the same bits in a part of their hashes that are looked at for each image, of many: the blank ones."""

PAIR_DTYPE = np.dtype([("near", "?"), ("row", "i8"), ("other_row", "i8"), ("cosine", "f4"), ("hash_distance", "i8")])
UnitVectors = NDArray[np.float32]
"""Float32 (n, width), each row of length 1."""
RowNumbers = NDArray[np.int64]
ReadRows = Callable[[RowNumbers], NDArray[np.float32]]
"""Returns the features of the given rows, float32 (n, width)."""
Pairs = tuple[RowNumbers, RowNumbers, NDArray[np.float32]]
"""Of n pairs: the rows, the first in the earlier of the two splits, and their cosines; (n,) each."""


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
        all_pairs: whether the cosines of all pairs were computed.
    """

    pairs: list[DuplicatePair]
    counts: dict[str, int]
    cosine: float
    hash_distance: int
    all_pairs: bool


def find_duplicates(
    read_features: ReadRows,
    hashes: NDArray[np.uint64],
    contents: NDArray[np.uint64],
    splits: NDArray[np.int8],
    max_pairs: int,
) -> Duplicates:
    """Find the pairs across splits, and list at most so many; the same ones each time.

    Two copies of the features are in memory where all pairs are compared, else some thousand rows at a time.
    ``hashes`` are perceptual, ``contents`` of the files' bytes, ``splits`` indices into ``SPLITS``, all (n,).
    """

    def unit(rows: RowNumbers) -> UnitVectors:
        features = read_features(rows)
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return np.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    all_pairs = len(splits) <= ALL_PAIRS_UP_TO or find_spec("faiss") is None
    read = unit(np.arange(len(splits))).__getitem__ if all_pairs else unit
    members = [np.flatnonzero(splits == split) for split in range(len(SPLITS))]
    min_cosine = _cosine_threshold(read, contents, members[TRAIN], np.flatnonzero(splits != TRAIN))
    max_distance = _hash_threshold(hashes, members)
    max_in_bucket = len(splits) if all_pairs else MAX_IN_BUCKET

    def near_pairs() -> Iterator[Pairs]:
        for rows, others in _near_by_hash(hashes, members, max_distance, max_in_bucket):
            yield rows, others, _cosines(read, rows, others)
        for rows, others, cosines in (_near_by_cosine if all_pairs else _nearest)(read, members, min_cosine):
            new = _bits(hashes[rows] ^ hashes[others]) > max_distance
            yield rows[new], others[new], cosines[new]

    def structured(rows: RowNumbers, others: RowNumbers, cosines: NDArray[np.float32]) -> NDArray[np.void]:
        pairs = np.empty(len(rows), PAIR_DTYPE)
        pairs["near"], pairs["row"], pairs["other_row"] = contents[rows] != contents[others], rows, others
        pairs["cosine"], pairs["hash_distance"] = cosines, _bits(hashes[rows] ^ hashes[others])
        return pairs

    exact, rows, others = _exact_pairs(contents, members, max_pairs)
    kept, near = structured(rows, others, _cosines(read, rows, others)), 0
    for pairs in (structured(*each) for each in near_pairs()):
        near += int(pairs["near"].sum())
        kept = np.concatenate([kept, pairs[pairs["near"]]])
        kept = kept[np.lexsort((-kept["cosine"], kept["near"]))[:max_pairs]]
    listed = [DuplicatePair("near" if near else "exact", *pair) for near, *pair in kept.tolist()]
    return Duplicates(listed, {"exact": exact, "near": near}, min_cosine, max_distance, all_pairs)


def _blocks(rows: RowNumbers, size: int | None = None) -> list[RowNumbers]:
    size = size or BLOCK
    return np.split(rows, range(size, len(rows), size))


def _cosines(unit: ReadRows, rows: RowNumbers, others: RowNumbers) -> NDArray[np.float32]:
    pairs = zip(_blocks(rows), _blocks(others), strict=True)
    return np.concatenate([np.einsum("ij,ij->i", unit(some), unit(each)) for some, each in pairs])


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many bits are set in each value (n,); NumPy's own function is younger than the lowest admitted one."""
    count: NDArray[np.int64] = np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
    return count


def _expand(starts: RowNumbers, counts: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
    """Return for the ranges ``start, ..., start + count - 1`` the number of the range and the value, one after another.

    Both are of as many values as the counts add up to.
    """
    numbers = np.repeat(np.arange(len(counts)), counts)
    return numbers, np.arange(len(numbers)) + (starts - np.cumsum(counts) + counts)[numbers]


def _exact_pairs(
    contents: NDArray[np.uint64], members: list[RowNumbers], most: int
) -> tuple[int, RowNumbers, RowNumbers]:
    """Count the pairs with the same bytes, and return the rows of the first ``most``."""
    total, found = 0, [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for one, other in combinations(members, 2):
        order = other[np.argsort(contents[other], kind="stable")]
        starts, ends = (np.searchsorted(contents[order], contents[one], side) for side in ("left", "right"))
        counts = ends - starts
        total += int(counts.sum())
        asked = np.flatnonzero(counts)[:most]
        number, place = _expand(starts[asked], np.minimum(counts[asked], most))
        found.append((one[asked[number]], order[place]))
    rows, others = (np.concatenate(each)[:most] for each in zip(*found, strict=True))
    return total, rows, others


def _near_by_hash(
    hashes: NDArray[np.uint64], members: list[RowNumbers], max_distance: int, max_in_bucket: int
) -> Iterator[tuple[RowNumbers, RowNumbers]]:
    """Yield the rows of all pairs with hashes no farther apart, each pair once.

    By multi-index hashing (Norouzi et al. 2012): of the bits cut into m bands, one band at least differs in at most
    1/m of ``max_distance`` bits. So the images are sorted by each band, and looked up with so many of its bits flipped.
    """
    for one, other in combinations(members if max_distance >= 0 else [], 2):
        bands = min(range(3, 9), key=lambda bands: _cost(bands, max_distance, len(one), len(other)))
        edges, flips = np.linspace(0, HASH_BITS, bands + 1).astype(int).tolist(), max_distance // bands
        earlier: list[np.uint64] = []
        for low, high in pairwise(edges):
            mask, shift = np.uint64((1 << high) - (1 << low)), np.uint64(low)
            flipped = [sum(bits) for n in range(flips + 1) for bits in combinations(1 << np.arange(high - low), n)]
            other_keys = ((hashes[other] & mask) >> shift).astype(np.int64)
            order = other[np.argsort(other_keys, kind="stable")]
            sizes = np.bincount(other_keys, minlength=1 << (high - low))
            starts = np.cumsum(sizes) - sizes
            for block, bits in product(_blocks(one, BLOCK_PAIRS), flipped):
                buckets = ((hashes[block] & mask) >> shift).astype(np.int64) ^ bits
                asked = np.flatnonzero(sizes[buckets])
                counts = np.minimum(sizes[buckets[asked]], max_in_bucket)
                cuts = np.searchsorted(np.cumsum(counts), np.arange(BLOCK_PAIRS, counts.sum(), BLOCK_PAIRS))
                for some, count in zip(np.split(asked, cuts), np.split(counts, cuts), strict=True):
                    number, place = _expand(starts[buckets[some]], count)
                    rows, others = block[some[number]], order[place]
                    differing = hashes[rows] ^ hashes[others]
                    found = _bits(differing) <= max_distance
                    for band in earlier:  # which has found it already where so few of its bits differ
                        found[found] = _bits(differing[found] & band) > flips
                    yield rows[found], others[found]
            earlier.append(mask)


def _cost(bands: int, max_distance: int, count: int, other_count: int) -> float:
    """Return how many buckets are made and looked up, and images found there, where the hashes are evenly spread."""
    buckets = 2 ** (HASH_BITS / bands)
    flipped = sum(comb(HASH_BITS // bands, n) for n in range(max_distance // bands + 1))
    return bands * (buckets + flipped * count * (1 + other_count / buckets))


def _near_by_cosine(unit: ReadRows, members: list[RowNumbers], min_cosine: float) -> Iterator[Pairs]:
    """Yield the pairs with at least this cosine, by comparing all."""
    for one, other in combinations(members, 2):
        for rows, others in product(_blocks(one), _blocks(other)):
            cosines = unit(rows) @ unit(others).T
            i, j = np.nonzero(cosines >= min_cosine)
            yield rows[i], others[j], cosines[i, j]


def _nearest(unit: ReadRows, members: list[RowNumbers], min_cosine: float) -> Iterator[Pairs]:
    """Yield those of the pairs with at least this cosine that are among each image's nearest."""
    import faiss  # noqa: PLC0415  (macOS lacks it)

    width = unit(np.zeros(1, np.int64)).shape[1]
    projection = np.random.default_rng(0).standard_normal((width, DIMENSIONS), np.float32) / np.sqrt(DIMENSIONS)
    projection = projection.astype(np.float32)
    for one, other in combinations(members, 2):
        indexed, asking = sorted((one, other), key=len)
        if not len(indexed):
            continue
        cells = min(len(indexed), int(4 * np.sqrt(len(indexed))))
        centres = faiss.IndexFlatL2(DIMENSIONS)
        index = faiss.IndexIVFScalarQuantizer(centres, DIMENSIONS, cells, faiss.ScalarQuantizer.QT_fp16)
        index.nprobe = CELLS_SEARCHED
        index.cp.min_points_per_centroid = 1  # else it warns on standard error
        sample = _blocks(evenly(indexed, cells * IMAGES_PER_CELL))
        index.train(np.concatenate([unit(rows) @ projection for rows in sample]))
        for rows in _blocks(indexed):
            index.add(unit(rows) @ projection)
        with Progress("near-duplicates", len(asking)) as progress:
            for rows in _blocks(asking):
                vectors = unit(rows)
                squares, places = index.search(vectors @ projection, NEIGHBOURS)
                i, j = np.nonzero(squares <= SLACK * 2 * (1 - min_cosine))  # ‖a - b‖² = 2 (1 - cosine)
                others = indexed[places[i, j]]
                cosines = np.einsum("ij,ij->i", vectors[i], unit(others))
                near = cosines >= min_cosine
                found = (rows[i][near], others[near])[:: 1 if asking is one else -1]
                yield *found, cosines[near]
                progress.advance(len(rows))


def _cosine_threshold(unit: ReadRows, contents: NDArray[np.uint64], train: RowNumbers, held_out: RowNumbers) -> float:
    """Return the cosine that the nearest image held out exceeds in one of twenty data sets without duplicates."""
    sample = evenly(held_out, MAX_SAMPLED)
    if len(sample) < MIN_SAMPLED or not len(train):
        return 1 - ROUNDING
    vectors, nearest = unit(sample), np.full(len(sample), -1, np.float32)
    for others in _blocks(train):
        cosines = np.where(contents[sample, None] == contents[others], -1, vectors @ unit(others).T)
        nearest = np.maximum(nearest, cosines.max(axis=1))
    logs = np.log(np.maximum(1 - nearest, ROUNDING))
    deviations = -ndtri(FALSE_ALARMS / len(held_out))
    middle = np.median(logs)
    spread = np.median(middle - logs[logs <= middle]) / ndtri(0.75)
    distance = np.exp(middle - deviations * spread)
    return float(1 - max(distance, ROUNDING))


def _hash_threshold(hashes: NDArray[np.uint64], members: list[RowNumbers]) -> int:
    """Return the distance in bits that one of twenty data sets without duplicates has a pair within; -1 if none is."""
    pairs, total, squares = 0, 0.0, 0.0
    for (count, sums, products), (others, other_sums, other_products) in combinations(
        [(len(rows), *_moments(hashes, rows)) for rows in members], 2
    ):
        pairs += count * others
        total += float(sums @ other_sums)
        squares += float((products * other_products).sum())
    mean = total / max(1, pairs)
    variance = squares / max(1, pairs) - mean**2
    if variance <= 0:
        return -1
    apart = (1 - mean) / 2
    degrees = int(apart * (1 - apart) / (variance / 4))
    distances = np.arange(HASH_BITS + 1)
    expected = pairs * bdtr(np.ceil(distances * degrees / HASH_BITS), degrees, apart)
    return int((expected < FALSE_ALARMS).sum()) - 1


def _moments(hashes: NDArray[np.uint64], rows: RowNumbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums (64,) and the sums of products (64, 64) of the hashes as vectors of ±1/8, of length 1."""
    sums, products = np.zeros(HASH_BITS), np.zeros((HASH_BITS, HASH_BITS))
    for block in _blocks(rows):
        bits = np.unpackbits(hashes[block].view(np.uint8).reshape(-1, 8), axis=1)
        signs = (bits * 2.0 - 1) / np.sqrt(HASH_BITS)
        sums += signs.sum(axis=0)
        products += signs.T @ signs
    return sums, products
