"""The data checks before anything is trained: a table of images for each, figures for the reports, lines in the log.

A table without entries has its header alone; those of duplicates and label errors list the ``MAX_ROWS`` worst. ``row``
is always the number of an image's row in data/prepared.
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
from headstart.data_checks.image_quality import find_image_problems
from headstart.data_checks.label_errors import LabelError, find_label_errors, out_of_fold_probabilities
from headstart.features.cache import read_features

MAX_ROWS = 1000
IMAGE_QUALITY_COLUMNS = ("row", "source", "split", "problem", "value")
DUPLICATE_COLUMNS = (
    *("kind", "row", "source", "split", "other_row", "other_source", "other_split"),
    *("cosine", "hash_distance"),
)
LABEL_COLUMNS = ("row", "source", "split", "label", "suggested", "label_probability", "suggested_probability")
IMBALANCE_LOGGED = 3
"""Images of the largest class for each of the smallest, above which the log has a line."""
SIDE_RATIO_LOGGED = 4
"""Largest short side over the smallest, above which the log has a line."""

logger = logging.getLogger(__name__)


def check_images(table: Path, folder: Path, images: int, input_side: int) -> dict[str, Any]:
    """Find tiny and blank images in a manifest.

    Args:
        table: to write.
        folder: of the manifest.
        images: number of its rows.
        input_side: side that the model sees, in pixels.

    Returns:
        ``odd_pictures``, how many images have each problem; ``side_range``, the smallest and the largest short side, in
        pixels.
    """
    sizes = ((min(int(row["width"]), int(row["height"])), float(row["contrast"])) for row in manifest_rows(folder))
    columns: NDArray[np.float64] = np.fromiter(sizes, np.dtype((np.float64, 2)), images)
    sides, contrasts = columns[:, 0], columns[:, 1]
    problems = find_image_problems(sides, contrasts, input_side)
    named = _sources_and_splits({each.row for each in problems}, folder)
    write_table(table, IMAGE_QUALITY_COLUMNS, [(row, *named[row], *rest) for row, *rest in problems])
    counts = {problem: sum(each.problem == problem for each in problems) for problem in ("tiny", "blank")}
    low, high = int(sides.min()), int(sides.max())
    if problems:
        logger.info("%d images are tiny, %d are blank: %s", counts["tiny"], counts["blank"], table)
    if np.median(sides) < input_side:
        logger.info("most images are smaller than the %d pixels that the model sees: they are enlarged", input_side)
    if high > SIDE_RATIO_LOGGED * low:
        logger.info("the short sides vary: %d to %d pixels", low, high)
    return {"odd_pictures": counts, "side_range": [low, high]}


def class_imbalance(per_class: dict[str, dict[str, int]]) -> float:
    """Return how many training images the largest class has for each of the smallest."""
    train = {name: counts["train"] for name, counts in per_class.items()}
    most, fewest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    ratio = train[most] / train[fewest]
    if ratio > IMBALANCE_LOGGED:
        logger.info(
            "the classes are uneven: %d training images of %r, %d of %r; see finetune.class_weights",
            *(train[most], most, train[fewest], fewest),
        )
    return round(ratio, 2)


def check_features(duplicates_table: Path, labels_table: Path, prepared: PreparedDataset) -> dict[str, Any]:
    """Find duplicates across the splits, and label errors in train and validation; labels of test are not read.

    Returns:
        ``duplicates_across_splits``, how many ``exact`` and ``near``; ``near_duplicate_cosine``, the threshold;
        ``suspicious_labels``, how many label errors.
    """
    identities = (
        (
            int(row["phash"], 16),
            group_number(None, sha256 := bytes.fromhex(row["sha256"])),
            group_number(row["group"], sha256),
        )
        for row in manifest_rows(prepared.folder)
    )
    columns: NDArray[np.uint64] = np.fromiter(identities, np.dtype((np.uint64, 3)), len(prepared.ids))
    hashes, contents, groups = (np.ascontiguousarray(columns[:, i]) for i in range(3))
    return _check_duplicates(duplicates_table, prepared, hashes, contents) | _check_labels(
        labels_table, prepared, join_groups(groups, contents)
    )


def _check_duplicates(
    table: Path, prepared: PreparedDataset, hashes: NDArray[np.uint64], contents: NDArray[np.uint64]
) -> dict[str, Any]:
    features = read_features(np.arange(len(prepared.ids)))
    duplicates = find_duplicates(features, hashes, contents, prepared.splits, MAX_ROWS)
    rows = {row for pair in duplicates.pairs for row in (pair.row, pair.other_row)}
    named = _sources_and_splits(rows, prepared.folder)
    lines = [
        (
            *(pair.kind, pair.row, *named[pair.row], pair.other_row, *named[pair.other_row]),
            *(f"{pair.cosine:.4f}", pair.hash_distance),
        )
        for pair in duplicates.pairs
    ]
    write_table(table, DUPLICATE_COLUMNS, lines)
    if lines:
        logger.info(
            "across the splits %d pairs of images are the same, and %d nearly: %s",
            duplicates.counts["exact"],
            duplicates.counts["near"],
            table,
        )
    return {"duplicates_across_splits": duplicates.counts, "near_duplicate_cosine": round(duplicates.cosine, 4)}


def _check_labels(table: Path, prepared: PreparedDataset, group_ids: NDArray[np.uint64]) -> dict[str, Any]:
    rows = np.concatenate([prepared.rows("train"), prepared.rows("validation")])
    labels = np.concatenate([read_labels("train"), read_labels("validation")])
    classes = len(prepared.classes)
    probabilities = out_of_fold_probabilities(read_features(rows), labels, group_ids[rows], classes)
    errors = find_label_errors(labels, probabilities)
    write_label_errors(table, prepared, rows, labels, errors)
    return {"suspicious_labels": len(errors)}


def write_label_errors(
    table: Path, prepared: PreparedDataset, rows: NDArray[np.int64], labels: NDArray[np.int64], errors: list[LabelError]
) -> None:
    """Write a table of label errors.

    Args:
        table: to write.
        prepared: the images.
        rows: int64 (n,), the labelled images.
        labels: int64 (n,), theirs.
        errors: from ``find_label_errors``; their places are places in ``rows``.
    """
    listed = [(int(rows[each.place]), each) for each in errors[:MAX_ROWS]]
    named, classes = _sources_and_splits({row for row, _ in listed}, prepared.folder), prepared.classes
    lines = [
        (
            *(row, *named[row], classes[labels[each.place]], classes[each.suggested]),
            *(f"{each.label_probability:.6f}", f"{each.suggested_probability:.6f}"),
        )
        for row, each in listed
    ]
    write_table(table, LABEL_COLUMNS, lines)
    if errors:
        logger.info("%d labels may be wrong: %s", len(errors), table)


def _sources_and_splits(rows: Collection[int], folder: Path) -> dict[int, tuple[str, str]]:
    """Return the source and the split of some rows of the manifest."""
    return {i: (row["source"], row["split"]) for i, row in enumerate(manifest_rows(folder)) if i in rows}
