"""What is odd about the data, found before anything is trained: tables of the images, figures, and a line in the log.

A table has its header alone where nothing was found, and of duplicates and labels the ``MOST`` worst. ``row`` is always
the number of an image's row in data/prepared.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import write_table
from headstart.data.dataset import PreparedDataset, manifest_rows, read_labels
from headstart.data.splits import group_number, join_groups
from headstart.data_checks.duplicates import find_duplicates
from headstart.data_checks.image_quality import find_odd_images
from headstart.data_checks.label_errors import LabelError, find_label_errors, out_of_fold_probabilities
from headstart.features.cache import read_features

MOST = 1000
ODD_COLUMNS = ("row", "source", "split", "problem", "value")
DUPLICATE_COLUMNS = (
    *("kind", "row", "source", "split", "other_row", "other_source", "other_split"),
    *("cosine", "hash_distance"),
)
LABEL_COLUMNS = ("row", "source", "split", "label", "suggested", "label_probability", "suggested_probability")
UNEVEN = 3
"""Images of the largest class for each of the smallest, above which that is said."""
VARIED = 4
"""Times the smallest short side, above which the largest one is said."""

logger = logging.getLogger(__name__)


def check_images(table: Path, folder: Path, images: int, seen: int) -> dict[str, Any]:
    """Look for tiny and blank images in a manifest.

    Args:
        table: to write.
        folder: of the manifest.
        images: in it.
        seen: side that the model sees, in pixels.

    Returns:
        ``odd_pictures``, how many of each problem; ``side_range``, the smallest and the largest short side, in pixels.
    """
    looks = ((min(int(row["width"]), int(row["height"])), float(row["contrast"])) for row in manifest_rows(folder))
    found: NDArray[np.float64] = np.fromiter(looks, np.dtype((np.float64, 2)), images)
    sides, contrasts = found[:, 0], found[:, 1]
    odd = find_odd_images(sides, contrasts, seen)
    named = _named({each.row for each in odd}, folder)
    write_table(table, ODD_COLUMNS, [(row, *named[row], *what) for row, *what in odd])
    counts = {problem: sum(each.problem == problem for each in odd) for problem in ("tiny", "blank")}
    low, high = int(sides.min()), int(sides.max())
    if odd:
        logger.info("%d images are tiny, %d are blank: %s", counts["tiny"], counts["blank"], table)
    if np.median(sides) < seen:
        logger.info("most images are smaller than the %d pixels that the model sees: they are enlarged", seen)
    if high > VARIED * low:
        logger.info("the short sides vary: %d to %d pixels", low, high)
    return {"odd_pictures": counts, "side_range": [low, high]}


def class_imbalance(per_class: dict[str, dict[str, int]]) -> float:
    """Return how many training images the largest class has for each of the smallest."""
    train = {name: counts["train"] for name, counts in per_class.items()}
    most, fewest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    ratio = train[most] / train[fewest]
    if ratio > UNEVEN:
        logger.info(
            "the classes are uneven: %d training images of %r, %d of %r; see finetune.class_weights",
            *(train[most], most, train[fewest], fewest),
        )
    return round(ratio, 2)


def check_features(duplicates_table: Path, labels_table: Path, prepared: PreparedDataset) -> dict[str, Any]:
    """Look for images in two splits, and for suspicious labels of train and validation; test's are not read.

    Returns:
        ``duplicates_across_splits``, how many ``exact`` and ``near``; ``near_duplicate_cosine``, the threshold;
        ``find_label_errors``, how many.
    """
    identities = (
        (
            int(row["phash"], 16),
            group_number(None, sha256 := bytes.fromhex(row["sha256"])),
            group_number(row["group"], sha256),
        )
        for row in manifest_rows(prepared.folder)
    )
    found: NDArray[np.uint64] = np.fromiter(identities, np.dtype((np.uint64, 3)), len(prepared.ids))
    hashes, contents, units = (np.ascontiguousarray(found[:, i]) for i in range(3))
    return _check_duplicates(duplicates_table, prepared, hashes, contents) | _check_labels(
        labels_table, prepared, join_groups(units, contents)
    )


def _check_duplicates(
    table: Path, prepared: PreparedDataset, hashes: NDArray[np.uint64], contents: NDArray[np.uint64]
) -> dict[str, Any]:
    features = read_features(np.arange(len(prepared.ids)))
    found = find_duplicates(features, hashes, contents, prepared.splits, MOST)
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
            "across the splits %d pairs of images are the same, and %d nearly: %s",
            found.counts["exact"],
            found.counts["near"],
            table,
        )
    return {"duplicates_across_splits": found.counts, "near_duplicate_cosine": round(found.cosine, 4)}


def _check_labels(table: Path, prepared: PreparedDataset, units: NDArray[np.uint64]) -> dict[str, Any]:
    rows = np.concatenate([prepared.rows("train"), prepared.rows("validation")])
    labels = np.concatenate([read_labels("train"), read_labels("validation")])
    classes = len(prepared.classes)
    found = find_label_errors(labels, out_of_fold_probabilities(read_features(rows), labels, units[rows], classes))
    write_label_errors(table, prepared, rows, labels, found)
    return {"suspicious_labels": len(found)}


def write_label_errors(
    table: Path, prepared: PreparedDataset, rows: NDArray[np.int64], labels: NDArray[np.int64], found: list[LabelError]
) -> None:
    """Write the suspicious labels.

    Args:
        table: to write.
        prepared: the images.
        rows: int64 (n,), the labelled images.
        labels: int64 (n,), theirs.
        found: what ``find_label_errors`` found, whose places are places in ``rows``.
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
    """Return the source and the split of some rows."""
    return {i: (row["source"], row["split"]) for i, row in enumerate(manifest_rows(folder)) if i in rows}
