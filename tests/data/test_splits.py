"""Drawn splits stay the same when images are added, and every class is in each split."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.data.splits import (
    NOT_GIVEN,
    TEST,
    TRAIN,
    VALIDATION,
    assign_by_hash,
    check_classes,
    complete_splits,
    count_duplicates,
    fractions_to_draw,
    group_number,
    join_groups,
)
from headstart.targets.target import Strata

FRACTIONS = {"validation": 0.2, "test": 0.1}


def random_ids(n: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, n, np.uint64)


def at(*places: float) -> NDArray[np.uint64]:
    return np.array([int(place * 2**64) for place in places], np.uint64)


def strata(labels: NDArray[np.integer], names: list[str]) -> Strata:
    return Strata(names, np.arange(len(labels)), labels.astype(np.int64))


def drawn(labels: NDArray[np.int32], group_ids: NDArray[np.uint64]) -> NDArray[np.int8]:
    names = [str(i) for i in range(int(labels.max()) + 1)]
    return complete_splits(np.full(len(group_ids), NOT_GIVEN, np.int8), strata(labels, names), group_ids, **FRACTIONS)


def test_fractions_are_met_and_additions_move_nothing() -> None:
    labels, group_ids = np.arange(20000, dtype=np.int32) % 7, random_ids(20000)
    first, more = drawn(labels[:10000], group_ids[:10000]), drawn(labels, group_ids)
    np.testing.assert_array_equal(first, more[:10000])
    np.testing.assert_allclose(np.bincount(more) / 20000, [0.7, 0.2, 0.1], atol=0.01)


def test_splits_are_those_of_earlier_versions() -> None:
    """A project's test images must never be trained on after an update: the digest is of the first version's splits."""
    rng = np.random.default_rng(0)
    group_ids = rng.choice(rng.integers(0, 2**64, 300, np.uint64), 1000)
    contents = rng.integers(0, 9000, 1000).astype(np.uint64)
    splits = drawn(rng.integers(0, 3, 1000).astype(np.int32), join_groups(group_ids, contents))
    assert np.bincount(splits).tolist() == [611, 197, 192]
    assert hashlib.sha256(splits.tobytes()).hexdigest().startswith("ffd83de9ae9e2c723423a30fcf12ad83")


def test_fixed_thresholds() -> None:
    splits = drawn(np.zeros(5, np.int32), at(0, 0.0999, 0.1001, 0.2999, 0.3001))
    assert splits.tolist() == [TEST, TEST, VALIDATION, VALIDATION, TRAIN]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([NOT_GIVEN], {TEST: 0.1, VALIDATION: 0.2}),
        ([TRAIN], {TEST: 0.1, VALIDATION: 0.2}),
        ([TRAIN, VALIDATION], {VALIDATION: 0.2}),
        ([TRAIN, TEST], {VALIDATION: 0.2}),
        ([TRAIN, VALIDATION, TEST], {}),
    ],
)
def test_the_split_of_an_image_can_be_predicted(given: list[int], expected: dict[int, float]) -> None:
    fractions, group_ids = fractions_to_draw(given, **FRACTIONS), random_ids(3000)
    assert fractions == expected
    one_class, of_source = strata(np.zeros(3000, np.int64), ["a"]), np.resize(given, 3000).astype(np.int8)
    splits = complete_splits(of_source, one_class, group_ids, **FRACTIONS)
    predicted = np.isin(of_source, [TRAIN, NOT_GIVEN])
    np.testing.assert_array_equal(splits[predicted], assign_by_hash(group_ids[predicted], fractions))
    assert not (splits[~predicted] == TRAIN).any()


def test_a_groups_id_is_from_its_name_or_from_its_images_content() -> None:
    content = bytes.fromhex("00000000000000ff") + bytes(24)
    assert group_number(None, content) == group_number("", content) == 255
    assert group_number("a", content) == group_number("a", bytes(32)) != group_number("b", content)


def test_where_a_class_lacks_a_split_its_image_with_the_nearest_hash_moves() -> None:
    # Class 0 has nothing below 0.3: test takes 0.35, then validation 0.5. Class 1 lacks train: it takes 0.29.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    splits = drawn(labels, at(0.9, 0.35, 0.5, 0.8, 0.05, 0.15, 0.25, 0.29))
    assert splits.tolist() == [TRAIN, TEST, VALIDATION, TRAIN, TEST, VALIDATION, VALIDATION, TRAIN]


def test_a_move_takes_no_class_from_a_split() -> None:
    # The group at 0.31 would be nearest for class 0, but it is all that class 1 has in train.
    group_ids = at(0.31, 0.5, 0.6, 0.9, 0.15, 0.05, 0.31)
    splits = drawn(np.array([0, 0, 0, 0, 1, 1, 1], np.int32), group_ids)
    assert splits.tolist() == [TRAIN, TEST, VALIDATION, TRAIN, VALIDATION, TEST, TRAIN]


def test_groups_stay_together() -> None:
    rng = np.random.default_rng(1)
    group_ids, labels = random_ids(40)[rng.integers(0, 40, 500)], rng.integers(0, 3, 500).astype(np.int32)
    splits = drawn(labels, group_ids)
    assert all(len(np.unique(splits[group_ids == group])) == 1 for group in np.unique(group_ids))
    assert all((splits[labels == label] == split).any() for label in range(3) for split in (TRAIN, VALIDATION, TEST))


def test_groups_that_share_an_image_are_joined() -> None:
    group_ids = np.array([5, 7, 7, 9, 2, 4], np.uint64)
    contents = np.array([1, 1, 2, 2, 3, 8], np.uint64)
    assert join_groups(group_ids, contents).tolist() == [5, 5, 5, 5, 2, 4]
    assert join_groups(group_ids[:0], contents[:0]).tolist() == []
    many = np.arange(256, dtype=np.uint64)
    assert set(join_groups(np.repeat(group_ids[:2], 256), np.tile(many, 2)).tolist()) == {5}


@pytest.mark.parametrize("seed", range(20))
def test_joined_groups_are_those_of_a_search_from_every_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group_ids, contents = rng.integers(0, 60, (2, 50)).astype(np.uint64)
    for start, joined in zip(group_ids, join_groups(group_ids, contents), strict=True):
        reached, more = np.array([]), np.array([start])
        while len(more) > len(reached):
            reached = more
            shared = np.isin(contents, contents[np.isin(group_ids, reached)])
            more = np.unique(group_ids[shared])
        assert joined == reached.min()


def test_given_validation_without_test_is_the_test_split() -> None:
    n = 3000
    given = np.where(np.arange(n) % 3 == 0, VALIDATION, TRAIN).astype(np.int8)
    splits = complete_splits(given, strata(np.zeros(n, np.int64), ["a"]), random_ids(n), **FRACTIONS)
    np.testing.assert_array_equal(splits == TEST, given == VALIDATION)
    assert 0.17 < (splits[given == TRAIN] == VALIDATION).mean() < 0.23


def test_all_given_splits_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    given = np.array([TRAIN, TRAIN, VALIDATION, TEST], np.int8)
    splits = complete_splits(given, strata(np.array([0, 1, 0, 0]), ["a", "b"]), random_ids(4), **FRACTIONS)
    np.testing.assert_array_equal(splits, given)
    assert "test has no image of 'b'" in caplog.text


def test_a_class_that_is_not_trained_on_is_refused() -> None:
    given = np.array([TRAIN, VALIDATION, TEST], np.int8)
    with pytest.raises(UserError, match="no training image of 'b'"):
        complete_splits(given, strata(np.array([0, 0, 1]), ["a", "b"]), random_ids(3), **FRACTIONS)


def test_too_few_distinct_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"'?0'?: 2"):
        drawn(np.zeros(4, np.int32), at(0.1, 0.1, 0.5, 0.5))


def test_groups_that_can_not_be_spread_are_refused() -> None:
    # Classes 0 and 1 share groups a and b, so that c and d must be in one split; class 2 has c, d and only one more.
    a, b, c, d, e = 0.1, 0.3, 0.5, 0.7, 0.9
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], np.int32)
    with pytest.raises(UserError, match="can't be spread"):
        drawn(labels, at(a, b, c, a, b, d, c, d, e))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no usable image"),
        ({"a": 0, "b": 0}, "no usable"),
        ({"a": 9}, "single class, 'a'.*move them up"),
        ({"a": 9, "b": 2}, "b: 2"),
    ],
)
def test_what_can_not_become_a_classifier(counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_classes(counts, splits_given=False)


def test_duplicates_are_counted() -> None:
    contents = np.array([1, 1, 2, 3, 3, 3], np.uint64)
    splits = np.array([TRAIN, TEST, TRAIN, TEST, TEST, TEST], np.int8)
    assert count_duplicates(contents, splits) == {"identical": 3, "across_splits": 1}
