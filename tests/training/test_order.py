from collections import Counter
from math import factorial

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.training.order import EpochOrder, Indices, WeightedDraws, permuted

COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 4095, 4096, 4097, 12345]
WINDOWED = [(1, 1, 1), (1117, 16, 19), (1000, 9, 3), (5, 9, 3), (10_000, 27, 23), (1025, 4, 1), (100, 50, 7), (3, 5, 1)]


def permutations(count: int, epochs: int, seed: int = 0) -> Indices:
    """(epochs, count), in one call: every position has its own epoch's key."""
    epoch, values = np.repeat(np.arange(epochs), count), np.tile(np.arange(count), epochs)
    return permuted(values, count, seed, epoch).reshape(epochs, count)


def is_even(counts: NDArray[np.int64], freedom: int) -> bool:
    """Whether χ² of counts that are expected to be equal is within five of its standard deviations."""
    excess = ((counts - counts.mean()) ** 2 / counts.mean()).sum() - freedom
    return bool(abs(excess) < 5 * np.sqrt(2 * freedom))


@pytest.mark.parametrize("count", COUNTS)
def test_it_is_a_permutation_and_another_one_for_each_key(count: int) -> None:
    orders = permutations(count, 5)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(count), (5, 1)))
    assert np.array_equal(orders[3], permuted(np.arange(count), count, 0, 3))
    if count >= 15:
        others = [*orders, *permutations(count, 5, seed=1)]
        assert len({order.tobytes() for order in others}) == 10
        agree = [np.mean(a == b) for i, a in enumerate(others) for b in others[:i]]
        assert np.mean(agree) < 2.5 / count  # as two random ones: one place on average


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_permutation_of_few_is_as_likely(count: int) -> None:
    orders = permutations(count, 40_000)
    seen = np.array(list(Counter(map(bytes, orders.astype(np.uint8))).values()))
    assert len(seen) == factorial(count)
    assert is_even(seen, factorial(count) - 1)


@pytest.mark.parametrize("count", [10, 16, 23, 100, 1000])
def test_places_and_neighbours_are_even(count: int) -> None:
    orders = permutations(count, 200_000 // count)
    places = np.bincount((np.arange(count) * count + orders).ravel(), minlength=count**2)
    assert is_even(places, (count - 1) ** 2)
    before, after = orders[:, :-1], orders[:, 1:]
    pairs = np.bincount((before * count + after).ravel(), minlength=count**2)
    apart = ~np.eye(count, dtype=bool).ravel()
    assert not pairs[~apart].any()
    assert is_even(pairs[apart], count * (count - 1) - 1)
    steps = np.bincount(((after - before) % count).ravel(), minlength=count)[1:]
    assert is_even(steps, count - 2)


@pytest.mark.parametrize(("count", "windows", "block"), WINDOWED)
def test_an_epoch_has_every_image_once_in_an_order_of_its_own(count: int, windows: int, block: int) -> None:
    order = EpochOrder(count, 0, windows, block)
    epochs = [order.images(epoch, np.arange(count)) for epoch in range(4)]
    assert all(np.array_equal(np.sort(images), np.arange(count)) for images in epochs)
    apart = np.concatenate([order.images(2, part) for part in np.array_split(np.arange(count), 5)])
    assert np.array_equal(apart, epochs[2])
    if count >= 100:
        others = [*epochs, EpochOrder(count, 1, windows, block).images(0, np.arange(count))]
        assert len({images.tobytes() for images in others}) == 5


def test_no_array_is_needed() -> None:
    for order in (EpochOrder(10**12, 7), EpochOrder(10**12, 7, windows=10**6, block=20)):
        positions = np.concatenate([np.arange(1000), 10**12 - 1 - np.arange(1000)])
        images = order.images(3, positions)
        assert len(np.unique(images)) == 2000
        assert images.min() >= 0
        assert images.max() < 10**12


def test_a_window_has_a_block_of_every_stratum() -> None:
    order = EpochOrder(9 * 40 * 10, 0, windows=9, block=10)  # no image is missing
    assert order.window == 400
    members, cuts = [], []
    for epoch in (0, 1):
        windows = order.images(epoch, np.arange(3600)).reshape(9, 400)
        for cut in range(9 * 10):
            blocks = np.sort((windows - cut) % 3600 // 10)
            whole = (blocks.reshape(9, 40, 10) == blocks[:, ::10, None]).all()
            if whole and (blocks[:, ::10] // 9 == np.arange(40)).all():
                cuts.append(cut)
        members.append({frozenset(window.tolist()) for window in windows})
    assert len(set(cuts)) == len(cuts) == 2  # one an epoch
    assert not members[0] & members[1]


def test_windows_have_the_classes_of_the_whole_where_the_store_is_sorted() -> None:
    order = EpochOrder(20_000, 0, windows=10, block=10)
    labels = np.arange(20_000) // 200  # 100 classes, one after the other
    for window in np.array_split(labels[order.images(1, np.arange(20_000))], 10):
        counts = np.bincount(window, minlength=100)
        assert counts.min() >= 10  # of 20 on average
        assert counts.max() <= 30


def test_the_next_window_is_fetched_in_runs_and_whole() -> None:
    order = EpochOrder(50_000, 3, windows=4, block=23)
    for epoch, window in ((0, 0), (0, 2), (1, 3)):
        positions = np.arange(window * order.window, min((window + 1) * order.window, 50_000))
        fetched = order.next_window(epoch, positions)
        assert (np.diff(fetched) == 1).mean() > 0.95
        then, after = divmod(window + 1, 4)
        wanted = order.images(epoch + then, np.arange(after * order.window, min((after + 1) * order.window, 50_000)))
        assert np.isin(wanted, fetched).mean() > 0.95  # but those that stand in for images that do not exist


def test_a_batch_of_a_window_is_random_within_it() -> None:
    """Two images of a block meet in a batch as often as any two of a window."""
    order, met = EpochOrder(1600, 0, windows=4, block=10), 0
    for epoch in range(300):
        batches = order.images(epoch, np.arange(1600)).reshape(-1, 16)
        place = np.empty(1600, int)
        place[batches.ravel()] = np.repeat(np.arange(100), 16)
        met += int((place[:-1] == place[1:]).sum())
    # Neighbours in the store are of one block 9 times of 10, and then in one batch 15 times of 399.
    expected = 300 * 1599 * 0.9 * 15 / 399
    assert abs(met - expected) < 5 * np.sqrt(expected)


WEIGHTS = [np.ones(1000), np.random.default_rng(0).exponential(size=1000) ** 2, np.array([1.0]), np.array([1e-12, 1.0])]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "unequal", "one", "next to nothing"])
def test_an_image_occurs_as_often_as_its_weight_says(weights: NDArray[np.float64]) -> None:
    """In each epoch up to less than one time; over many epochs on average."""
    draws, count, total = WeightedDraws(weights, 0), len(weights), np.zeros(len(weights))
    expected = count * weights / weights.sum()
    for epoch in range(200):
        images, repeats = draws.at(epoch, np.arange(count))
        times = np.bincount(images, minlength=count)
        assert (np.abs(times - expected) < 1 + 1e-6).all()
        # Each time that it occurs has its own number, from 0.
        assert np.array_equal(repeats, np.concatenate([np.arange(each) for each in times]))
        total += times
    assert np.abs(total / 200 - expected).max() < 0.2
    if count > 2 and np.ptp(weights) == 0:
        assert (total == 200).all()


def test_what_is_drawn_follows_from_seed_epoch_and_place_alone() -> None:
    draws = WeightedDraws(WEIGHTS[1], 0)
    whole = draws.at(3, np.arange(1000))
    for part in np.array_split(np.random.default_rng(1).permutation(1000), 7):
        for found, expected in zip(draws.at(3, part), whole, strict=True):
            assert np.array_equal(found, expected[part])
    others = draws.at(4, np.arange(1000)), WeightedDraws(WEIGHTS[1], 1).at(3, np.arange(1000))
    assert all((images != whole[0]).any() for images, _ in others)


def test_classes_are_balanced_and_windows_are_read_in_runs() -> None:
    """Of 100 to 1, in a store that is sorted by class."""
    labels = np.repeat([0, 1, 2], [9000, 900, 90])
    counts = np.bincount(labels)
    for power, share in ((1.0, [1 / 3] * 3), (0.5, np.sqrt(counts) / np.sqrt(counts).sum())):
        draws = WeightedDraws((1 / counts[labels]) ** power, 0)
        order = EpochOrder(len(labels), 0, windows=5, block=50)
        images, _ = draws.at(1, order.images(1, np.arange(len(labels))))
        assert np.bincount(labels[images]) / len(labels) == pytest.approx(share, abs=1e-3)
        for window in np.array_split(images, 5):
            assert np.bincount(labels[window]) / len(window) == pytest.approx(share, abs=0.05)
            runs = np.diff(np.unique(window))
            assert np.median(runs[labels[np.unique(window)][1:] > 0]) == 1
