import numpy as np
import pytest

from headstart.training.augment import uniform

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mixed(bits: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


def split_mix(seed: int, count: int) -> list[int]:
    return [mixed(seed + GAMMA * i & MASK) for i in range(1, count + 1)]


def reference(count: int, *key: int) -> list[float]:
    state = 0
    for part in key:
        state = mixed(state ^ mixed(part + GAMMA & MASK))
    return [(bits >> 11) / 2**53 for bits in split_mix(state, count)]


def test_the_reference_is_split_mix() -> None:
    """The published outputs for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert split_mix(1234567, 4) == published


@pytest.mark.parametrize("key", [(0,), (0, 0), (7, 3, 12345), (MASK, MASK, MASK), (1, 2, 3, 4)])
def test_numbers_are_those_of_the_reference(key: tuple[int, ...]) -> None:
    assert uniform(5, *key).tolist() == [reference(5, *key)]


def test_arrays_are_broadcast_and_each_row_has_its_own_key() -> None:
    ids = np.array([3, MASK, 0, 2**63], np.uint64)
    assert uniform(3, 1, 2, ids).tolist() == [reference(3, 1, 2, int(i)) for i in ids]
    epochs = np.arange(4)
    assert uniform(3, 1, epochs, ids).tolist() == [
        reference(3, 1, int(e), int(i)) for e, i in zip(epochs, ids, strict=True)
    ]


def test_a_row_does_not_depend_on_its_batch_nor_its_place() -> None:
    ids = np.arange(50, dtype=np.uint64)
    whole = uniform(4, 5, 6, ids)
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(uniform(4, 5, 6, ids[order]), whole[order])
    assert np.array_equal(np.concatenate([uniform(4, 5, 6, part) for part in np.array_split(ids, 7)]), whole)
    assert np.array_equal(uniform(9, 5, 6, ids)[:, :4], whole)  # more numbers of a key go on where fewer ended


def test_every_part_of_the_key_matters_and_its_place() -> None:
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2), (1, 2), (1, 2, 3, 0), (0, 1, 2, 3)]
    assert len({uniform(1, *key)[0, 0] for key in keys}) == len(keys)


def test_numbers_are_uniform_and_no_two_keys_share_them() -> None:
    seeds, epochs, ids = (a.ravel() for a in np.meshgrid(np.arange(8), np.arange(25), np.arange(100), indexing="ij"))
    draws = uniform(4, seeds, epochs, ids)
    assert draws.shape == (20_000, 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert len(np.unique(draws)) == draws.size
    error = 5 / np.sqrt(len(draws))  # five standard errors, in units of the deviation
    assert np.abs(draws.mean(0) - 0.5).max() < error * np.sqrt(1 / 12)
    assert np.abs(draws.var(0) - 1 / 12).max() < error * np.sqrt(1 / 180)
    counts = np.apply_along_axis(lambda column: np.histogram(column, 64, (0, 1))[0], 0, draws)
    expected = len(draws) / 64
    assert ((counts - expected) ** 2 / expected).sum(0).max() < 63 + 5 * np.sqrt(2 * 63)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < error
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < error  # neighbouring images


def test_the_largest_number_is_below_one() -> None:
    assert (MASK >> 11) / 2**53 < 1
