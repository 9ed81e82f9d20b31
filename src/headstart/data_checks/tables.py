"""What is odd about the data, found before anything is trained: tables of the pictures, figures, and a line in the log.

A table has its header alone where nothing was found, and of duplicates and labels the ``MOST`` worst. ``row`` is always
the number of a picture's row in data/prepared.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import write_table
from headstart.data.dataset import Prepared, manifest_rows, read_labels
from headstart.data.splits import joined_units, unit_number
from headstart.data_checks.duplicates import duplicates
from headstart.data_checks.image_quality import odd_pictures
from headstart.data_checks.label_errors import Suspicion, out_of_fold_probabilities, suspicious_labels
from headstart.features.cache import read_features

MOST = 1000
ODD_COLUMNS = ("row", "source", "split", "problem", "value")
DUPLICATE_COLUMNS = (
    *("kind", "row", "source", "split", "other_row", "other_source", "other_split"),
    *("cosine", "hash_distance"),
)
LABEL_COLUMNS = ("row", "source", "split", "label", "suggested", "label_probability", "suggested_probability")
UNEVEN = 3
"""Pictures of the largest class for each of the smallest, above which that is said."""
VARIED = 4
"""Times the smallest short side, above which the largest one is said."""

logger = logging.getLogger(__name__)


def check_pictures(table: Path, folder: Path, pictures: int, seen: int) -> dict[str, Any]:
    """Look for tiny and blank pictures in a manifest.

    Args:
        table: to write.
        folder: of the manifest.
        pictures: in it.
        seen: side that the model sees, in pixels.

    Returns:
        ``odd_pictures``, how many of each problem; ``side_range``, the smallest and the largest short side, in pixels.
    """
    looks = ((min(int(row["width"]), int(row["height"])), float(row["contrast"])) for row in manifest_rows(folder))
    found: NDArray[np.float64] = np.fromiter(looks, np.dtype((np.float64, 2)), pictures)
    sides, contrasts = found[:, 0], found[:, 1]
    odd = odd_pictures(sides, contrasts, seen)
    named = _named({each.row for each in odd}, folder)
    write_table(table, ODD_COLUMNS, [(row, *named[row], *what) for row, *what in odd])
    counts = {problem: sum(each.problem == problem for each in odd) for problem in ("tiny", "blank")}
    low, high = int(sides.min()), int(sides.max())
    if odd:
        logger.info("%d pictures are tiny, %d are blank: %s", counts["tiny"], counts["blank"], table)
    if np.median(sides) < seen:
        logger.info("most pictures are smaller than the %d pixels that the model sees: they are enlarged", seen)
    if high > VARIED * low:
        logger.info("the short sides vary: %d to %d pixels", low, high)
    return {"odd_pictures": counts, "side_range": [low, high]}


def class_imbalance(per_class: dict[str, dict[str, int]]) -> float:
    """Give how many training pictures the largest class has for each of the smallest."""
    train = {name: counts["train"] for name, counts in per_class.items()}
    most, fewest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    ratio = train[most] / train[fewest]
    if ratio > UNEVEN:
        logger.info(
            "the classes are uneven: %d training pictures of %r, %d of %r; see finetune.class_weights",
            *(train[most], most, train[fewest], fewest),
        )
    return round(ratio, 2)


def check_features(duplicates_table: Path, labels_table: Path, prepared: Prepared) -> dict[str, Any]:
    """Look for pictures in two splits, and for suspicious labels of train and validation; test's are not read.

    Returns:
        ``duplicates_across_splits``, how many ``exact`` and ``near``; ``near_duplicate_cosine``, the threshold;
        ``suspicious_labels``, how many.
    """
    identities = (
        (
            int(row["phash"], 16),
            unit_number(None, sha256 := bytes.fromhex(row["sha256"])),
            unit_number(row["group"], sha256),
        )
        for row in manifest_rows(prepared.folder)
    )
    found: NDArray[np.uint64] = np.fromiter(identities, np.dtype((np.uint64, 3)), len(prepared.ids))
    hashes, contents, units = (np.ascontiguousarray(found[:, i]) for i in range(3))
    return _check_duplicates(duplicates_table, prepared, hashes, contents) | _check_labels(
        labels_table, prepared, joined_units(units, contents)
    )


def _check_duplicates(
    table: Path, prepared: Prepared, hashes: NDArray[np.uint64], contents: NDArray[np.uint64]
) -> dict[str, Any]:
    features = read_features(np.arange(len(prepared.ids)))
    found = duplicates(features, hashes, contents, prepared.splits, MOST)
    named = _named({row for pair in found.pairs for row in (pair.row, pair.other_row)}, prepared.folder)
    lines = [
        (
            *(pair.kind, pair.row, *named[pair.row], pair.other_row, *named[pair.other_row]),
            *(f"{pair.cosine:.4f}", pair.hash_distance),
        )
        for pair in found.pairs
    ]
    write_table(table, DUPLICATE_COLUMNS, lines)
    if lines:
        logger.info(
            "across the splits %d pairs of pictures are the same, and %d nearly: %s",
            found.counts["exact"],
            found.counts["near"],
            table,
        )
    return {"duplicates_across_splits": found.counts, "near_duplicate_cosine": round(found.cosine, 4)}


def _check_labels(table: Path, prepared: Prepared, units: NDArray[np.uint64]) -> dict[str, Any]:
    rows = np.concatenate([prepared.rows("train"), prepared.rows("validation")])
    labels = np.concatenate([read_labels("train"), read_labels("validation")])
    classes = len(prepared.classes)
    found = suspicious_labels(labels, out_of_fold_probabilities(read_features(rows), labels, units[rows], classes))
    write_suspicious_labels(table, prepared, rows, labels, found)
    return {"suspicious_labels": len(found)}


def write_suspicious_labels(
    table: Path, prepared: Prepared, rows: NDArray[np.int64], labels: NDArray[np.int64], found: list[Suspicion]
) -> None:
    """Write the suspicious labels.

    Args:
        table: to write.
        prepared: the pictures.
        rows: int64 (n,), the labelled pictures.
        labels: int64 (n,), theirs.
        found: what ``suspicious_labels`` found, whose places are places in ``rows``.
    """
    listed = [(int(rows[each.place]), each) for each in found[:MOST]]
    named, classes = _named({row for row, _ in listed}, prepared.folder), prepared.classes
    lines = [
        (
            *(row, *named[row], classes[labels[each.place]], classes[each.suggested]),
            *(f"{each.label_probability:.6f}", f"{each.suggested_probability:.6f}"),
        )
        for row, each in listed
    ]
    write_table(table, LABEL_COLUMNS, lines)
    if found:
        logger.info("%d labels are suspicious: %s", len(found), table)


def _named(rows: Collection[int], folder: Path) -> dict[int, tuple[str, str]]:
    """Give the source and the split of some rows."""
    return {i: (row["source"], row["split"]) for i, row in enumerate(manifest_rows(folder)) if i in rows}
