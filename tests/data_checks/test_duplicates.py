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


def pairs(found: Duplicates) -> set[tuple[str, int, int]]:
    return {(pair.kind, pair.row, pair.other_row) for pair in found.pairs}


def test_different_images_are_hardly_taken_for_copies() -> None:
    """In ten data sets without copies, 1.2 million pairs; one in twenty sets were the alarms of an exact rule."""
    assert sum(len(find_duplicates(*data(seed), 100).pairs) for seed in range(10)) <= 6


def test_copies_are_found_by_content_by_features_and_by_hash() -> None:
    features, hashes, contents, splits = data()
    contents[4] = contents[3]  # train 3, validation 4: the same bytes, whatever the rest says
    features[11] = features[6] + 0.02  # train 6, test 11: nearly the same features
    hashes[10] = hashes[9] ^ np.uint64(1)  # train 9, validation 10: a bit apart
    features[15] = features[12]  # both in train: no matter
    found = find_duplicates(features, hashes, contents, splits, 100)
    assert pairs(found) == {("exact", 3, 4), ("near", 6, 11), ("near", 9, 10)}
    assert found.counts == {"exact": 1, "near": 2}
    near = next(pair for pair in found.pairs if pair.row == 6)
    assert near.cosine == pytest.approx(
        features[6] @ features[11] / np.prod([np.linalg.norm(features[i]) for i in (6, 11)])
    )
    assert near.cosine > found.cosine
    by_hash = next(pair for pair in found.pairs if pair.row == 9)
    assert by_hash.hash_distance == 1 <= found.hash_distance
    assert by_hash.cosine < found.cosine


def test_the_most_alike_are_listed_and_all_are_counted() -> None:
    features, hashes, contents, splits = data()
    for i, noise in ((0, 0.05), (3, 0.03), (6, 0.01), (9, 0.0)):
        features[i + 1] = features[i] * (1 + noise * np.sin(np.arange(WIDTH)))
    contents[13] = contents[12]
    found = find_duplicates(features, hashes, contents, splits, 3)
    assert [pair.row for pair in found.pairs] == [12, 9, 6]
    assert found.counts == {"exact": 1, "near": 4}


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    features, hashes, contents, splits = data()
    features[11], hashes[10], contents[4] = features[6], hashes[9], contents[3]
    whole = find_duplicates(features, hashes, contents, splits, 100)
    monkeypatch.setattr(module, "BLOCK", 37)
    assert pairs(find_duplicates(features, hashes, contents, splits, 100)) == pairs(whole)


def test_few_images_held_out_make_only_equal_features_near() -> None:
    features, hashes, contents, _ = data()
    splits = np.zeros(N, np.int8)
    splits[:10] = 2
    features[100] = features[3]
    features[101] = features[4] + 0.02
    found = find_duplicates(features, hashes, contents, splits, 100)
    assert ("near", 100, 3) in pairs(found)
    assert ("near", 101, 4) not in pairs(found)


@pytest.mark.parametrize("alone", [0, 2])
def test_a_split_without_images_has_no_copies(alone: int) -> None:
    features, hashes, contents, _ = data()
    assert find_duplicates(features, hashes, contents, np.full(N, alone, np.int8), 100).pairs == []


def test_images_that_all_look_alike_are_no_copies_by_their_hash() -> None:
    """Blank ones have one hash, and then it tells nothing."""
    features, hashes, contents, splits = data()
    assert find_duplicates(features, np.zeros_like(hashes), contents, splits, 100).pairs == []
    blank = str(imagehash.phash(Image.new("L", (64, 64), 128)))
    assert int(blank, 16) in {0, 2**63}
