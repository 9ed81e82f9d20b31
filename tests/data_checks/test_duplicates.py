import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.data_checks import duplicates as module
from headstart.data_checks.duplicates import Duplicates, find_duplicates

N, WIDTH = 600, 64


def data(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int8]]:
    """Features, hashes and contents of images that are no copies; a third in each split.

    Some lie near each other and some alone, as images do.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(20, WIDTH))[generator.integers(0, 20, N)]
    spread = generator.lognormal(0, 0.3, (N, 1))
    features = (centres + spread * generator.normal(size=(N, WIDTH))).astype(np.float32)
    hashes = generator.integers(0, 2**64, N, dtype=np.uint64)
    return features, hashes, np.arange(N, dtype=np.uint64), np.arange(N, dtype=np.int8) % 3


def find(
    features: NDArray[np.float32],
    hashes: NDArray[np.uint64],
    contents: NDArray[np.uint64],
    splits: NDArray[np.int8],
    most: int = 100,
) -> Duplicates:
    return find_duplicates(features.__getitem__, hashes, contents, splits, most)


def pairs(found: Duplicates) -> set[tuple[str, int, int]]:
    return {(pair.kind, pair.row, pair.other_row) for pair in found.pairs}


@pytest.fixture(params=["all pairs", "index"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether all pairs are compared, or the nearest by an index, as in a large data set."""
    all_pairs = bool(request.param == "all pairs")
    monkeypatch.setattr(module, "ALL_PAIRS_UP_TO", N if all_pairs else 0)
    return all_pairs


@pytest.mark.usefixtures("either_way")
def test_different_images_are_hardly_taken_for_copies() -> None:
    """In ten data sets without copies, 1.2 million pairs; one in twenty sets were the alarms of an exact rule."""
    assert sum(len(find(*data(seed)).pairs) for seed in range(10)) <= 6


def test_copies_are_found_by_content_by_features_and_by_hash(either_way: bool) -> None:
    features, hashes, contents, splits = data()
    contents[4] = contents[3]  # train 3, validation 4: the same bytes, whatever the rest says
    features[11] = features[6] + 0.02  # train 6, test 11: nearly the same features
    hashes[10] = hashes[9] ^ np.uint64(1)  # train 9, validation 10: a bit apart
    features[15] = features[12]  # both in train: no matter
    found = find(features, hashes, contents, splits)
    assert pairs(found) == {("exact", 3, 4), ("near", 6, 11), ("near", 9, 10)}
    assert found.counts == {"exact": 1, "near": 2}
    assert found.all_pairs == either_way
    near = next(pair for pair in found.pairs if pair.row == 6)
    assert near.cosine == pytest.approx(
        features[6] @ features[11] / np.prod([np.linalg.norm(features[i]) for i in (6, 11)])
    )
    assert near.cosine > found.cosine
    by_hash = next(pair for pair in found.pairs if pair.row == 9)
    assert by_hash.hash_distance == 1 <= found.hash_distance
    assert by_hash.cosine < found.cosine


@pytest.mark.usefixtures("either_way")
def test_the_most_alike_are_listed_and_all_are_counted() -> None:
    features, hashes, contents, splits = data()
    for i, noise in ((0, 0.05), (3, 0.03), (6, 0.01), (9, 0.0)):
        features[i + 1] = features[i] * (1 + noise * np.sin(np.arange(WIDTH)))
    contents[13] = contents[12]
    found = find(features, hashes, contents, splits, 3)
    assert [pair.row for pair in found.pairs] == [12, 9, 6]
    assert found.counts == {"exact": 1, "near": 4}


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    features, hashes, contents, splits = data()
    features[11], hashes[10], contents[4] = features[6], hashes[9], contents[3]
    whole = find(features, hashes, contents, splits)
    monkeypatch.setattr(module, "BLOCK", 37)
    assert pairs(find(features, hashes, contents, splits)) == pairs(whole)


@pytest.mark.usefixtures("either_way")
def test_few_images_held_out_make_only_equal_features_near() -> None:
    features, hashes, contents, _ = data()
    splits = np.zeros(N, np.int8)
    splits[:10] = 2
    features[100] = features[3]
    features[101] = features[4] + 0.02
    found = find(features, hashes, contents, splits)
    assert ("near", 100, 3) in pairs(found)
    assert ("near", 101, 4) not in pairs(found)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("alone", [0, 2])
def test_a_split_without_images_has_no_copies(alone: int) -> None:
    features, hashes, contents, _ = data()
    assert find(features, hashes, contents, np.full(N, alone, np.int8)).pairs == []


def test_images_that_all_look_alike_are_no_copies_by_their_hash() -> None:
    """Blank ones have one hash, and then it tells nothing."""
    features, hashes, contents, splits = data()
    assert find(features, np.zeros_like(hashes), contents, splits).pairs == []
    blank = str(imagehash.phash(Image.new("L", (64, 64), 128)))
    assert int(blank, 16) in {0, 2**63}


def test_the_index_finds_what_comparing_all_pairs_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 altered copies, from hardly to beyond recognition, and wider features than those that the index keeps."""
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(50, 300))
    features = np.asarray(centres[generator.integers(0, 50, 4000)] + generator.normal(size=(4000, 300)), np.float32)
    strength = 10 ** generator.uniform(-2, 0, (200, 1))
    features[200:400] = features[:200] + strength * generator.normal(size=(200, 300))
    given = np.zeros(4000, np.uint64), np.arange(4000, dtype=np.uint64), generator.choice(3, 4000).astype(np.int8)
    whole = find(features, *given, 1000)
    monkeypatch.setattr(module, "ALL_PAIRS_UP_TO", 3999)
    found = find(features, *given, 1000)
    assert whole.all_pairs
    assert not found.all_pairs
    assert 50 < whole.counts["near"] < 200
    assert pairs(found) == pairs(whole)
    assert find(features, *given, 1000) == found


def test_without_faiss_all_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_PAIRS_UP_TO", 0)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    features, hashes, contents, splits = data()
    features[11] = features[6] + 0.02
    found = find(features, hashes, contents, splits)
    assert found.all_pairs
    assert pairs(found) == {("near", 6, 11)}


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 9, 13])
def test_near_hashes_are_found_to_the_last_pair(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 100, dtype=np.uint64)[generator.integers(0, 100, 900)]
    for _ in range(10):  # up to ten bits of each flipped
        hashes ^= np.uint64(1) << generator.integers(0, 64, 900, dtype=np.uint64)
    contents, splits = np.arange(900, dtype=np.uint64), np.arange(900, dtype=np.int8) % 3
    monkeypatch.setattr(module, "_cosine_threshold", lambda *_: 2.0)
    monkeypatch.setattr(module, "_hash_threshold", lambda *_: distance)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 1000)
    found = find(generator.normal(size=(900, 4)).astype(np.float32), hashes, contents, splits, 10**6)
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(np.int64)
    apart = (bits[:, None] != bits).sum(axis=2)
    true = {(i, j) for i, j in np.argwhere((apart <= distance) & (splits[:, None] < splits)).tolist()}
    assert {(pair.row, pair.other_row) for pair in found.pairs} == true
    assert len(found.pairs) == found.counts["near"] == len(true)
    assert all(pair.hash_distance == apart[pair.row, pair.other_row] for pair in found.pairs)


def test_images_that_are_all_the_same_cost_no_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of a large data set is blank, with other bytes each."""
    monkeypatch.setattr(module, "ALL_PAIRS_UP_TO", 0)
    monkeypatch.setattr(module, "MAX_IN_BUCKET", 3)
    features, hashes, contents, splits = data()
    blank = np.arange(0, N, 20)
    features[blank], hashes[blank] = 1, 0
    found = find(features, hashes, contents, splits, 10**6)
    assert 0 < found.counts["near"] <= len(blank) * (module.NEIGHBOURS + 3) * 2
    contents[:] = 7
    same = find(features, hashes, contents, splits, 5)
    sizes = np.bincount(splits)
    assert same.counts == {"exact": (N**2 - (sizes**2).sum()) // 2, "near": 0}
    assert [pair.kind for pair in same.pairs] == ["exact"] * 5
