"""Which images are trained on, validated on and tested on: drawn from hashes, so that new images move no others.

In all arrays row i is image i; ``contents`` are the first 8 bytes of its sha256. Images of one group stay in one split:
those that the source puts into one, or all with the same bytes. A group's id is the first 8 bytes of a sha256. Divided
by 2⁶⁴ it is the group's position in [0, 1), where fixed thresholds separate the splits.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NOT_GIVEN = -1


def check_classes(counts: Mapping[str, int], *, splits_given: bool) -> None:
    """Refuse a source that no classifier can be trained on.

    Args:
        counts: usable images of each class.
        splits_given: whether the source assigns the splits.

    Raises:
        UserError: no images, a single class, or classes with too few images.
    """
    if not sum(counts.values()):
        raise UserError("prepare: there is no usable image; check prepare.source and prepare.path in params.yaml")
    if len(counts) == 1:
        raise UserError(f"prepare: there is a single class, {next(iter(counts))!r}; a classifier needs at least two")
    _refuse_small_classes(counts, 1 if splits_given else len(SPLITS))


def _refuse_small_classes(counts: Mapping[str, int], needed: int) -> None:
    small = [f"  {name}: {count}" for name, count in counts.items() if count < needed]
    if small:
        raise UserError(
            "\n".join([
                f"prepare: a class needs {needed} distinct usable images (or groups), one per split. These have fewer:",
                *small,
                "Add images, or remove the class.",
            ])
        )  # fmt: skip


def group_number(group: str | None, sha256: bytes) -> int:
    """Return the id of an image's group: from the group's name, or without one from the image's sha256."""
    digest = hashlib.sha256(group.encode()).digest() if group else sha256
    return int.from_bytes(digest[:8])


def fractions_to_draw(given: Collection[int], *, validation: float, test: float) -> dict[int, float]:
    """Return the fraction of each split that is drawn because the source does not assign it.

    Args:
        given: indices into ``SPLITS``, or ``NOT_GIVEN`` alone. If they are train and validation alone, as in
            ImageNet, validation serves as the test split.
        validation: fraction of the validation split, if it is drawn.
        test: fraction of the test split, if it is drawn.
    """
    present = {TRAIN, TEST} if set(given) == {TRAIN, VALIDATION} else given
    return {split: part for split, part in {TEST: test, VALIDATION: validation}.items() if split not in present}


def assign_by_hash(group_ids: NDArray[np.uint64], fractions: Mapping[int, float]) -> NDArray[np.int8]:
    """Assign groups to the splits to draw by their fixed thresholds, and the rest to train.

    Args:
        group_ids: uint64 (n,).
        fractions: of ``fractions_to_draw``.

    Returns:
        int8 (n,), indices into ``SPLITS``.
    """
    splits = np.full(len(group_ids), TRAIN, np.int8)
    positions = group_ids / 2.0**64
    for split, (low, high) in _intervals(fractions).items():
        splits[(positions >= low) & (positions < high)] = split
    return splits


def _intervals(fractions: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """Return each split's interval of [0, 1), train's last."""
    edges = np.cumsum([0.0, *fractions.values()]).tolist()
    return {split: (edges[i], edges[i + 1]) for i, split in enumerate(fractions)} | {TRAIN: (edges[-1], 1.0)}


def join_groups(group_ids: NDArray[np.uint64], contents: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Join groups that contain the same image, each under the lowest id of its members; all arrays are uint64 (n,)."""
    ids, group = np.unique(group_ids, return_inverse=True)
    order = np.lexsort((group, contents))
    same = contents[order][1:] == contents[order][:-1]
    edges = group[order][:-1][same], group[order][1:][same]
    graph = coo_array((np.ones(same.sum(), bool), edges), shape=(len(ids), len(ids)))
    _, component = connected_components(graph, directed=False)
    lowest = np.unique(component, return_index=True)[1]  # the first is the lowest, since `ids` are sorted
    joined: NDArray[np.uint64] = ids[lowest[component]][group]
    return joined


def count_duplicates(contents: NDArray[np.uint64], splits: NDArray[np.int8]) -> dict[str, int]:
    """Count ``identical``, copies beyond the first of each image, and ``across_splits``, images in several splits."""
    order = np.lexsort((splits, contents))
    same = contents[order][1:] == contents[order][:-1]
    torn = contents[order][1:][same & (splits[order][1:] != splits[order][:-1])]
    return {"identical": int(same.sum()), "across_splits": len(np.unique(torn))}


def count_splits(splits: NDArray[np.int8], labels: NDArray[np.int32], classes: Sequence[str]) -> dict[str, Any]:
    """Count images by split and class, for the report; ``splits`` and ``labels`` are those of ``complete_splits``."""
    table = np.zeros((len(classes), len(SPLITS)), np.int64)
    np.add.at(table, (labels, splits), 1)
    per_split = dict(zip(SPLITS, table.sum(axis=0).tolist(), strict=True))
    per_class = [dict(zip(SPLITS, row, strict=True)) for row in table.tolist()]
    return {
        "pictures": len(splits),
        "classes": len(classes),
        "splits": per_split,
        "shares": {split: round(count / len(splits), 4) for split, count in per_split.items()},
        "per_class": dict(zip(classes, per_class, strict=True)),
    }


def complete_splits(
    given: NDArray[np.int8],
    labels: NDArray[np.int32],
    group_ids: NDArray[np.uint64],
    classes: Sequence[str],
    *,
    validation: float,
    test: float,
) -> NDArray[np.int8]:
    """Keep the splits that the source assigns, and draw the others from the training images, or from all.

    If the source assigns validation and no test, as ImageNet does, its validation is the test split.

    Args:
        given: int8 (n,), indices into ``SPLITS``, or ``NOT_GIVEN`` everywhere.
        labels: int32 (n,), indices into ``classes``.
        group_ids: uint64 (n,), of ``join_groups``.
        classes: names, for messages.
        validation: fraction of the validation split, if it is drawn.
        test: fraction of the test split, if it is drawn.

    Returns:
        int8 (n,), indices into ``SPLITS``.

    Raises:
        UserError: a class that can't be in every split.
    """
    present = set(np.unique(given).tolist())
    splits = given.copy()
    if present == {TRAIN, VALIDATION}:
        splits[splits == VALIDATION] = TEST
    splits[splits == NOT_GIVEN] = TRAIN
    _check_given(splits, labels, classes)
    fractions = fractions_to_draw(present, validation=validation, test=test)
    if fractions:
        pool = np.flatnonzero(splits == TRAIN)
        splits[pool] = _draw(labels[pool], group_ids[pool], classes, fractions)
    return splits


def _check_given(splits: NDArray[np.int8], labels: NDArray[np.int32], classes: Sequence[str]) -> None:
    """Raise UserError if a class is not in train; log the classes that another split lacks."""
    for split in np.unique(splits):
        lacking = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), labels[splits == split])]
        names = ", ".join(map(repr, lacking))
        if lacking and split == TRAIN:
            raise UserError(f"prepare: no training image of {names}; add some or remove the class")
        if lacking:
            logger.info("%s has no image of %s", SPLITS[split], names)


def _draw(
    labels: NDArray[np.int32], group_ids: NDArray[np.uint64], classes: Sequence[str], fractions: Mapping[int, float]
) -> NDArray[np.int8]:
    """Assign groups by their hashes. If a class is missing in a split, its nearest movable group moves there."""
    intervals, splits = _intervals(fractions), assign_by_hash(group_ids, fractions)
    by_class = np.argsort(labels, kind="stable")
    rows = np.split(by_class, np.searchsorted(labels[by_class], np.arange(1, len(classes))))
    distinct = {name: len(np.unique(group_ids[of_class])) for name, of_class in zip(classes, rows, strict=True)}
    _refuse_small_classes(distinct, len(intervals))
    for label, name in enumerate(classes):
        for split, interval in intervals.items():
            if (splits[rows[label]] == split).any():
                continue
            group_id = _movable_group(labels, group_ids, splits, rows, label=label, interval=interval)
            if group_id is None:
                raise UserError(
                    f"prepare: the groups of class {name!r} can't be spread over the splits; make more groups"
                )
            splits[group_ids == group_id] = split
    return splits


def _movable_group(
    labels: NDArray[np.int32],
    group_ids: NDArray[np.uint64],
    splits: NDArray[np.int8],
    rows: Sequence[NDArray[np.int64]],
    *,
    label: int,
    interval: tuple[float, float],
) -> np.uint64 | None:
    """Return the group of class ``label`` nearest to an interval whose move takes no class from its present split.

    ``rows`` are the images of each class; ``splits`` are those assigned so far.
    """
    candidates = np.unique(group_ids[rows[label]])
    positions = candidates / 2.0**64
    distances = np.maximum(np.maximum(interval[0] - positions, positions - interval[1]), 0)
    for candidate in candidates[np.argsort(distances, kind="stable")]:
        members = group_ids == candidate
        origin = splits[members][0]
        affected = [rows[other] for other in np.unique(labels[members])]
        if all(((splits[of_class] == origin) & (group_ids[of_class] != candidate)).any() for of_class in affected):
            chosen: np.uint64 = candidate
            return chosen
    return None
