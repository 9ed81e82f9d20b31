"""The data checks before anything is trained: a table of images for each, figures for the reports, lines in the log.

A table without entries has its header alone; those of duplicates and label errors list the ``MAX_ROWS`` worst. ``row``
is always the number of an image's row in data/prepared.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import ChecksConfig
from headstart.core.io import write_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.manifest import manifest_column, sources_and_splits
from headstart.data.splits import group_number, join_groups
from headstart.data_checks.duplicates import NEIGHBOURS, find_duplicates
from headstart.data_checks.label_errors import choose_sample, first_groups, out_of_fold_expectations
from headstart.features.cache import read_features
from headstart.images.decode import Note
from headstart.targets.target import LabelError, Target

MAX_ROWS = 1000
TINY_FRACTION = 0.5
"""Of the side that the model sees: a smaller image is enlarged to more than four times its pixels."""
BLANK_CONTRAST = 3.0
"""Contrast in levels of 255. The lowest among 6,750 photographs of Imagenette was 7.3; a grey card photographed with
noise of 20 levels has 2."""
IMAGE_QUALITY_COLUMNS = ("row", "source", "split", "problem", "value")
DUPLICATE_COLUMNS = (
    *("kind", "row", "source", "split", "other_row", "other_source", "other_split"),
    *("cosine", "hash_distance"),
)
LABEL_COLUMNS = ("row", "source", "split", "label", "suggested")
"""Further ones are the target's ``error_figures``."""
CHECK_FIGURES = (
    *("duplicates_across_splits", "near_duplicate_cosine", "near_duplicates_among"),
    *("suspicious_labels", "labels_learned_from"),
)
SWITCHED_OFF = "switched off"
IMBALANCE_LOGGED = 3
"""Images of the largest class for each of the smallest, above which the log has a line."""
SIDE_RATIO_LOGGED = 4
"""Largest short side over the smallest, above which the log has a line."""

NOTED_PROBLEMS = {
    "few_bits": "hold few of their bits, such as %s %s: they become nearly black; scale them to the full range",
    "unused_bands": "have bands that are not used, such as %s %s: save those that the model is to see as grey or RGB",
    "no_data": "have values that are no data or no number, such as %s %s: each counts as its band's least valid value",
    "odd_transparency": "may have another band for transparency, such as %s with %s: if so, save RGB alone",
}
"""The problems of ``Note``, with what the log says of an example, its value and the table."""

logger = logging.getLogger(__name__)


def check_images(table: Path, folder: Path, input_side: int, notes: Sequence[tuple[int, Note]] = ()) -> dict[str, Any]:
    """Find tiny and blank images in a folder's manifest, for a model that sees ``input_side`` pixels a side.

    ``notes`` has what was noted when images were decoded, by their rows.

    Returns:
        ``odd_pictures``, how many images have each problem; ``side_range``, the smallest and the largest short side, in
        pixels.
    """
    columns = (_column(name, folder).astype(np.float64) for name in ("width", "height", "contrast"))
    sides, height, contrasts = columns
    np.minimum(sides, height, out=sides)
    problems = [*(ImageProblem(row, *note) for row, note in notes), *find_image_problems(sides, contrasts, input_side)]
    named = sources_and_splits({each.row for each in problems}, folder)
    write_table(table, IMAGE_QUALITY_COLUMNS, [(row, *named[row], *rest) for row, *rest in problems])
    counts = Counter({"tiny": 0, "blank": 0})
    counts.update(each.problem for each in problems)
    low, high = int(sides.min()), int(sides.max())
    if counts["tiny"] or counts["blank"]:
        logger.info("%d images are tiny, %d are blank: %s", counts["tiny"], counts["blank"], table)
    for problem, advice in NOTED_PROBLEMS.items():
        if first := next((each for each in problems if each.problem == problem), None):
            example = named[first.row][0]
            logger.warning(f"{counts[problem]} images {advice}: %s", example, first.value, table)
    if np.median(sides) < input_side:
        logger.info("most images are smaller than the %d pixels that the model sees: they are enlarged", input_side)
    if high > SIDE_RATIO_LOGGED * low:
        logger.info("the short sides vary: %d to %d pixels", low, high)
    return {"odd_pictures": dict(counts), "side_range": [low, high]}


class ImageProblem(NamedTuple):
    """An image's row, its ``problem``, and its short side in pixels, its contrast, or the value of its note."""

    row: int
    problem: str
    value: float | str


def find_image_problems(
    short_sides: NDArray[np.float64], contrasts: NDArray[np.float64], input_side: int
) -> list[ImageProblem]:
    """Find images that a model can learn little from, since they are tiny or blank.

    An image is tiny if its short side, in pixels, is below half of the side that the model sees and below half of the
    median too: where all images are small, none of them is a problem. Contrasts are as ``ImageInfo.contrast``.
    """
    tiny = short_sides < TINY_FRACTION * min(input_side, float(np.median(short_sides)))
    blank = contrasts < BLANK_CONTRAST
    return [
        *(ImageProblem(row, "tiny", int(short_sides[row])) for row in np.flatnonzero(tiny).tolist()),
        *(ImageProblem(row, "blank", round(float(contrasts[row]), 2)) for row in np.flatnonzero(blank).tolist()),
    ]


def class_imbalance(target: Target, per_class: dict[str, dict[str, int]]) -> float:
    """Return how many training images the largest class, label, grade or part has for each of the smallest."""
    train = [(counts["train"], name) for name, counts in per_class.items()]
    most, fewest = (extreme(train, key=lambda each: each[0]) for extreme in (max, min))
    ratio = most[0] / max(fewest[0], 1)
    if ratio > IMBALANCE_LOGGED:
        text = "%s are uneven: %d training images of %r, %d of %r; see finetune.sampling%s"
        logger.info(text, target.nouns, *most, *fewest, " and class_weights" if target.has_classes else "")
    return round(ratio, 2)


def check_features(
    duplicates_table: Path, labels_table: Path, prepared: PreparedDataset, checks: ChecksConfig
) -> dict[str, Any]:
    """Find duplicates across the splits, and label errors in train and validation; labels of test are not read.

    Returns:
        ``duplicates_across_splits``, how many ``exact`` and ``near``; ``near_duplicate_cosine``, the threshold;
        ``near_duplicates_among``, which pairs were compared; ``suspicious_labels``, how many label errors;
        ``labels_learned_from``, how many images the heads that judge them were trained on. They are None where the
        check is switched off. ``check_seconds`` has each check's time, or ``switched off``.
    """
    report: dict[str, Any] = dict.fromkeys(CHECK_FIGURES)
    write_table(duplicates_table, DUPLICATE_COLUMNS, [])
    write_table(labels_table, (*LABEL_COLUMNS, *prepared.target.error_figures), [])
    seconds: dict[str, Any] = dict.fromkeys(ChecksConfig.model_fields, SWITCHED_OFF)
    if checks.duplicates or checks.labels:
        # As ``group_number`` has it, the first 8 bytes.
        firsts = (each[:, :8].copy().view(">u8")[:, 0] for each in manifest_column("sha256", prepared.folder))
        contents = np.concatenate(list(firsts)).astype(np.uint64)
    if checks.duplicates:
        hashes = _column("phash", prepared.folder)
        began = time.perf_counter()
        report |= _check_duplicates(duplicates_table, prepared, hashes, contents)
        seconds["duplicates"] = round(time.perf_counter() - began, 2)
    if checks.labels:
        began = time.perf_counter()
        report |= _check_labels(labels_table, prepared, join_groups(_group_ids(contents, prepared.folder), contents))
        seconds["labels"] = round(time.perf_counter() - began, 2)
    return report | {"check_seconds": seconds}


def _check_duplicates(
    table: Path, prepared: PreparedDataset, hashes: NDArray[np.uint64], contents: NDArray[np.uint64]
) -> dict[str, Any]:
    duplicates = find_duplicates(read_features, hashes, contents, prepared.splits, MAX_ROWS)
    among = "all pairs" if duplicates.all_pairs else f"each image's {NEIGHBOURS} nearest"
    if not duplicates.all_pairs:
        text = "near-duplicates of %d images were looked for among %s: comparing all pairs would take too long"
        logger.info(text, len(hashes), among)
    rows = {row for pair in duplicates.pairs for row in (pair.row, pair.other_row)}
    named = sources_and_splits(rows, prepared.folder)
    lines = [
        (kind, row, *named[row], other, *named[other], f"{cosine:.4f}", distance)
        for kind, row, other, cosine, distance in duplicates.pairs
    ]
    write_table(table, DUPLICATE_COLUMNS, lines)
    if lines:
        text = "across the splits %(exact)d pairs of images are the same, and %(near)d nearly: %(table)s"
        logger.info(text, {**duplicates.counts, "table": table})
    return {
        "duplicates_across_splits": duplicates.counts,
        "near_duplicate_cosine": round(duplicates.cosine, 4),
        "near_duplicates_among": among,
    }


def _check_labels(table: Path, prepared: PreparedDataset, group_ids: NDArray[np.uint64]) -> dict[str, Any]:
    rows = np.concatenate([prepared.rows("train"), prepared.rows("validation")])
    values, target = np.concatenate([read_values("train"), read_values("validation")]), prepared.target
    sample = choose_sample(first_groups(target, values), read_features(rows[:1]).shape[1], target.outputs)
    if len(sample) < len(rows):
        text = "the labels of %d images are judged by heads that learn from %d of them: more would take too long"
        logger.info(text, len(rows), len(sample))
    expected = out_of_fold_expectations(
        lambda places: read_features(rows[places]), values, target, group_ids[rows], sample
    )
    errors = target.find_errors(values, expected)
    write_label_errors(table, prepared, rows, errors)
    return {"suspicious_labels": len(errors), "labels_learned_from": len(sample)}


def write_label_errors(
    table: Path, prepared: PreparedDataset, rows: NDArray[np.int64], errors: list[LabelError]
) -> None:
    """Write a table of label errors, whose places are places in ``rows``, int64 (n,)."""
    listed = errors[:MAX_ROWS]
    named = sources_and_splits({int(rows[each.place]) for each in listed}, prepared.folder)
    lines = [
        (row, *named[row], each.label, each.suggested, *(f"{figure:.6f}" for figure in each.figures))
        for row, each in ((int(rows[each.place]), each) for each in listed)
    ]
    write_table(table, (*LABEL_COLUMNS, *prepared.target.error_figures), lines)
    if errors:
        logger.info("%d labels may be wrong: %s", len(errors), table)


def _column(name: str, folder: Path) -> NDArray[Any]:
    """Return a column of numbers of the manifest, (n,)."""
    return np.concatenate(list(manifest_column(name, folder)))


def _group_ids(contents: NDArray[np.uint64], folder: Path) -> NDArray[np.uint64]:
    """Return the ``group_number`` of every image: that of its content where it has no group."""
    ids = contents.copy()
    for row, group in enumerate(chain.from_iterable(manifest_column("group", folder))):
        if group:
            ids[row] = group_number(group, b"")
    return ids
