"""Which image is trained on, validated on and tested on: drawn from hashes, so that new images move no others.

The rows of all arrays are the images. A unit is what stays together: a group, or all images with the same bytes.
Its number is the first 8 bytes of a sha256, a place in [0, 2⁶⁴), where fixed thresholds make the splits.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NOT_GIVEN = -1


def check_classes(counts: Mapping[str, int], *, splits_given: bool) -> None:
    """Refuse what can't become a classifier.

    Args:
        counts: usable images of each class.
        splits_given: whether the source brings its splits.

    Raises:
        UserError: no images, a single class, or classes of too few images.
    """
    if not sum(counts.values()):
        raise UserError(
            "prepare: there is no usable image at all; look at prepare.source and prepare.path in params.yaml"
        )
    if len(counts) == 1:
        raise UserError(f"prepare: there is a single class, {next(iter(counts))!r}; a classifier needs at least two")
    _refuse_small(counts, 1 if splits_given else len(SPLITS))


def _refuse_small(counts: Mapping[str, int], needed: int) -> None:
    small = [f"  {name}: {count}" for name, count in counts.items() if count < needed]
    if small:
        raise UserError(
            "\n".join([
                f"prepare: a class needs {needed} distinct usable images (or groups), one a split. These have fewer:",
                *small,
                "Add images, or remove the class.",
            ])
        )  # fmt: skip


def group_number(group: str | None, sha256: bytes) -> int:
    """Return the number of an image's unit: from its group's name, or without one from its content."""
    digest = hashlib.sha256(group.encode()).digest() if group else sha256
    return int.from_bytes(digest[:8])


def fractions_to_draw(given: Collection[int], *, validation: float, test: float) -> dict[int, float]:
    """Tell which splits are drawn, and their shares, beside those that the source gives.

    Args:
        given: indices into ``SPLITS``, or ``NOT_GIVEN`` alone. Of train and validation alone, the latter is the test
            split, as in ImageNet.
        validation: share of the validation split, if it is drawn.
        test: share of the test split, if it is drawn.
    """
    there = {TRAIN, TEST} if set(given) == {TRAIN, VALIDATION} else given
    return {split: share for split, share in {TEST: test, VALIDATION: validation}.items() if split not in there}


def assign_by_hash(units: NDArray[np.uint64], shares: Mapping[int, float]) -> NDArray[np.int8]:
    """Place units by the fixed thresholds: what none of the splits that are drawn takes is train.

    Args:
        units: uint64 (n,).
        shares: ``fractions_to_draw``'s.

    Returns:
        int8 (n,), indices into ``SPLITS``.
    """
    splits = np.full(len(units), TRAIN, np.int8)
    places = units / 2.0**64
    for split, (low, high) in _intervals(shares).items():
        splits[(places >= low) & (places < high)] = split
    return splits


def _intervals(shares: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """Return each split's part of [0, 1), train's last."""
    edges = np.cumsum([0.0, *shares.values()]).tolist()
    return {split: (edges[i], edges[i + 1]) for i, split in enumerate(shares)} | {TRAIN: (edges[-1], 1.0)}


def join_groups(units: NDArray[np.uint64], contents: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Join units that contain the same image; a joined unit's number is its lowest.

    Args:
        units: uint64 (n,).
        contents: uint64 (n,), from the hash of the image's bytes.

    Returns:
        uint64 (n,).
    """
    order = np.lexsort((units, contents))
    same = (contents[order][1:] == contents[order][:-1]) & (units[order][1:] != units[order][:-1])
    first, second = units[order][:-1][same].tolist(), units[order][1:][same].tolist()
    parent: dict[int, int] = {unit: unit for unit in [*first, *second]}

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for one, other in zip(first, second, strict=True):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    if not parent:
        return units
    linked = np.array(sorted(parent), np.uint64)
    roots = np.array([root(unit) for unit in linked.tolist()], np.uint64)
    places = np.searchsorted(linked, units).clip(max=len(linked) - 1)
    return np.where(linked[places] == units, roots[places], units)


def count_duplicates(contents: NDArray[np.uint64], splits: NDArray[np.int8]) -> dict[str, int]:
    """Count images that are there more than once.

    Args:
        contents: uint64 (n,), from the hash of the image's bytes.
        splits: int8 (n,), indices into ``SPLITS``.

    Returns:
        ``identical``: copies beyond the first of each image; ``across_splits``: images in more than one split.
    """
    order = np.lexsort((splits, contents))
    same = contents[order][1:] == contents[order][:-1]
    torn = contents[order][1:][same & (splits[order][1:] != splits[order][:-1])]
    return {"identical": int(same.sum()), "across_splits": len(np.unique(torn))}


def complete_splits(
    given: NDArray[np.int8],
    labels: NDArray[np.int32],
    units: NDArray[np.uint64],
    classes: Sequence[str],
    *,
    validation: float,
    test: float,
) -> NDArray[np.int8]:
    """Keep the splits that the source gives and draw the others from the training images, or from all.

    Where validation is given and test is not, as in ImageNet, the given one is the test split.

    Args:
        given: int8 (n,), indices into ``SPLITS``, or ``NOT_GIVEN`` everywhere.
        labels: int32 (n,), indices into ``classes``.
        units: uint64 (n,), joined.
        classes: names, for messages.
        validation: share of the validation split, if it is drawn.
        test: share of the test split, if it is drawn.

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
    _check_given(splits, labels, classes, set(np.unique(splits).tolist()))
    shares = fractions_to_draw(present, validation=validation, test=test)
    if shares:
        pool = np.flatnonzero(splits == TRAIN)
        splits[pool] = _drawn(labels[pool], units[pool], classes, shares)
    return splits


def _check_given(
    splits: NDArray[np.int8], labels: NDArray[np.int32], classes: Sequence[str], present: set[int]
) -> None:
    """A class must be in train; one that another given split lacks is said, no more."""
    for split in sorted(present):
        lacking = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), labels[splits == split])]
        if lacking and split == TRAIN:
            raise UserError(
                f"prepare: no training image of {', '.join(map(repr, lacking))}; add some or remove the class"
            )
        if lacking:
            logger.info("%s has no image of %s", SPLITS[split], ", ".join(map(repr, lacking)))


def _drawn(
    labels: NDArray[np.int32], units: NDArray[np.uint64], classes: Sequence[str], shares: Mapping[int, float]
) -> NDArray[np.int8]:
    """Draw the given splits, the rest is train; a class that one lacks lends it the unit with the nearest hash."""
    intervals, splits = _intervals(shares), assign_by_hash(units, shares)
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(len(classes) + 1))
    rows = [by_class[bounds[i] : bounds[i + 1]] for i in range(len(classes))]
    _refuse_small({name: len(np.unique(units[rows[i]])) for i, name in enumerate(classes)}, len(intervals))
    for label, name in enumerate(classes):
        for split, interval in intervals.items():
            if not (splits[rows[label]] == split).any():
                unit = _lendable(labels=labels, units=units, splits=splits, rows=rows, label=label, interval=interval)
                if unit is None:
                    raise UserError(
                        f"prepare: the groups of class {name!r} can't be spread over the splits; make more groups"
                    )
                splits[units == unit] = split
    return splits


def _lendable(
    *,
    labels: NDArray[np.int32],
    units: NDArray[np.uint64],
    splits: NDArray[np.int8],
    rows: Sequence[NDArray[np.int64]],
    label: int,
    interval: tuple[float, float],
) -> np.uint64 | None:
    """Choose the class's unit nearest to an interval among those that leave no split without one of their classes."""
    candidates = np.unique(units[rows[label]])
    places = candidates / 2.0**64
    distances = np.maximum(np.maximum(interval[0] - places, places - interval[1]), 0)
    for unit in candidates[np.argsort(distances, kind="stable")]:
        members = units == unit
        home = splits[members][0]
        of_unit = np.unique(labels[members])
        if all(((splits[rows[other]] == home) & (units[rows[other]] != unit)).any() for other in of_unit):
            chosen: np.uint64 = unit
            return chosen
    return None
