"""Which images are trained on, validated on and tested on: drawn from hashes, so that new images move no others.

What is said of a class holds for whatever each split needs images of (``Strata``): a label, a quarter of the numbers.
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
from headstart.core.problems import list_problems, some
from headstart.data.dataset import SPLITS
from headstart.targets.target import Strata

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NOT_GIVEN = -1


def check_classes(counts: Mapping[str, int], *, splits_given: bool) -> None:
    """Raise UserError if there are no usable images, a single class, or classes with too few of them."""
    refuse_none(sum(counts.values()))
    if len(counts) == 1:
        raise UserError(
            f"prepare: there is a single class, {next(iter(counts))!r}; a classifier needs at least two: if they are "
            "folders in this one, move them up out of it"
        )
    _refuse_small_classes(counts, 1 if splits_given else len(SPLITS))


def refuse_none(images: int) -> None:
    """Raise UserError if there are no usable images."""
    if not images:
        raise UserError("prepare: there is no usable image; check prepare.source and prepare.path in params.yaml")


def refuse_untrained_classes(names: Sequence[str], noun: str = "class") -> None:
    """Raise UserError if there is a class without a training image."""
    if names:
        raise UserError(
            f"prepare: no training image of {some(map(repr, names))}; add some or remove the {noun} (images without "
            "labels are for `headstart predict`)"
        )


def _refuse_small_classes(counts: Mapping[str, int], needed: int, noun: str = "class") -> None:
    small = [(name, str(count)) for name, count in counts.items() if count < needed]
    if small:
        first = f"prepare: a {noun} needs {needed} distinct usable images (or groups), one per split. These have fewer:"
        raise UserError(list_problems(first, small, f"Add images, or remove the {noun}."))


def group_number(group: str | None, sha256: bytes) -> int:
    """Return the id of an image's group: from the group's name, or without one from the image's sha256."""
    digest = hashlib.sha256(group.encode()).digest() if group else sha256
    return int.from_bytes(digest[:8])


def fractions_to_draw(given: Collection[int], *, validation: float, test: float) -> dict[int, float]:
    """Return the fraction of each split that is drawn because it is not ``given``: indices into ``SPLITS``.

    If train and validation alone are given, as in ImageNet, validation serves as the test split.
    """
    present = {TRAIN, TEST} if set(given) == {TRAIN, VALIDATION} else given
    return {split: part for split, part in {TEST: test, VALIDATION: validation}.items() if split not in present}


def assign_by_hash(group_ids: NDArray[np.uint64], fractions: Mapping[int, float]) -> NDArray[np.int8]:
    """Assign groups to the splits of ``fractions_to_draw`` by fixed thresholds, and the rest to train."""
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
    if np.array_equal(group_ids, contents):  # no image has a group but its own
        return group_ids
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


def count_splits(splits: NDArray[np.int8], strata: Strata) -> dict[str, Any]:
    """Count images by split, and by what each split needs, for the report."""
    table = np.zeros((len(strata.names), len(SPLITS)), np.int64)
    np.add.at(table, (strata.groups, splits[strata.images]), 1)
    per_split = dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))
    return {
        "pictures": len(splits),
        "classes": len(strata.names),
        "splits": per_split,
        "shares": {split: round(count / len(splits), 4) for split, count in per_split.items()},
        "per_class": {
            name: dict(zip(SPLITS, row, strict=True)) for name, row in zip(strata.names, table.tolist(), strict=True)
        },
    }


def complete_splits(
    given: NDArray[np.int8], strata: Strata, group_ids: NDArray[np.uint64], *, validation: float, test: float
) -> NDArray[np.int8]:
    """Keep the splits that the source assigns, and draw those of ``fractions_to_draw`` from the training images.

    Args:
        given: indices into ``SPLITS``, or ``NOT_GIVEN`` everywhere.
        strata: what every split needs images of.
        group_ids: of ``join_groups``.
        validation: fraction of the validation split, if it is drawn.
        test: fraction of the test split, if it is drawn.

    Raises:
        UserError: what can't be in every split.
    """
    present = set(np.unique(given).tolist())
    splits = given.copy()
    if present == {TRAIN, VALIDATION}:
        splits[splits == VALIDATION] = TEST
    splits[splits == NOT_GIVEN] = TRAIN
    for split in np.unique(splits):
        there = np.unique(strata.groups[splits[strata.images] == split])
        lacking = [strata.names[i] for i in np.setdiff1d(np.arange(len(strata.names)), there)]
        if split == TRAIN:
            refuse_untrained_classes(lacking, strata.noun)
        elif lacking:
            logger.info("%s has no image of %s", SPLITS[split], some(map(repr, lacking)))
    fractions = fractions_to_draw(present, validation=validation, test=test)
    if fractions:
        pool = splits == TRAIN
        place, inside = np.cumsum(pool) - 1, pool[strata.images]
        of_pool = Strata(strata.names, place[strata.images[inside]], strata.groups[inside])
        splits[pool] = _draw(of_pool, group_ids[pool], fractions)
    return splits


def _draw(strata: Strata, group_ids: NDArray[np.uint64], fractions: Mapping[int, float]) -> NDArray[np.int8]:
    """Assign groups by their hashes. If a stratum is missing in a split, its nearest movable group moves there."""
    intervals, splits = _intervals(fractions), assign_by_hash(group_ids, fractions)
    # The images of each stratum, by one sort instead of a mask for each.
    by_stratum = np.argsort(strata.groups, kind="stable")
    ends = np.searchsorted(strata.groups[by_stratum], np.arange(1, len(strata.names)))
    rows = np.split(strata.images[by_stratum], ends)
    distinct = {name: len(np.unique(group_ids[each])) for name, each in zip(strata.names, rows, strict=True)}
    _refuse_small_classes(distinct, len(intervals), strata.noun)
    for number, name in enumerate(strata.names):
        for split, (low, high) in intervals.items():
            if (splits[rows[number]] == split).any():
                continue
            candidates = np.unique(group_ids[rows[number]])
            positions = candidates / 2.0**64
            distances = np.maximum(np.maximum(low - positions, positions - high), 0)
            for candidate in candidates[np.argsort(distances, kind="stable")]:
                members = group_ids == candidate
                # Moving it must take no stratum from the split that it is in.
                staying = (splits == splits[members][0]) & ~members
                of_members, of_staying = (np.unique(strata.groups[each[strata.images]]) for each in (members, staying))
                if np.isin(of_members, of_staying).all():
                    splits[members] = split
                    break
            else:
                raise UserError(f"prepare: the groups of {name!r} can't be spread over the splits; make more groups")
    return splits
