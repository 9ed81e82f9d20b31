"""The cache of features: by content, in files that are whole or not there."""

import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset
from headstart.data.manifest import manifest_rows
from headstart.features.cache import FeatureCache, ImageKeys, image_keys
from helpers.images import write_prepared

KEY = {"weights": "abc", "input": {"input_size": [3, 32, 32]}, "dtype": "float32"}


def keys(count: int) -> ImageKeys:
    return np.random.default_rng(1).integers(0, 2**64, (count, 2), np.uint64)


def rows(count: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_outlive_the_cache_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    written = rows(5, dtype)
    cache = FeatureCache(tmp_path / "deep", KEY, 6, dtype)
    assert cache.missing(keys(5)).tolist() == [0, 1, 2, 3, 4]
    cache.add(keys(3), written[:3])
    cache.refresh()
    assert cache.missing(keys(5)).tolist() == [3, 4]
    cache.add(keys(5)[3:], written[3:])
    again = FeatureCache(tmp_path / "deep", KEY, 6, dtype)
    assert again.missing(keys(6)[::-1]).tolist() == [0]
    for order in ([4, 0, 3], [0, 1, 2, 3, 4], [2, 2]):
        read = again.rows(keys(5)[order])
        assert read.dtype == dtype
        assert read.tobytes() == written[order].tobytes()


def test_another_way_of_computing_has_another_folder(tmp_path: Path) -> None:
    folders = set()
    for change in ({}, {"weights": "abd"}, {"input": {"input_size": [3, 32, 33]}}, {"dtype": "float16"}):
        cache = FeatureCache(tmp_path, {**KEY, **change}, 6, "float32")
        assert cache.missing(keys(1)).tolist() == [0]
        cache.add(keys(1), rows(1))
        folders.add(cache.folder)
    assert len(folders) == 4
    # The order of the keys is no part of it.
    assert FeatureCache(tmp_path, dict(reversed(KEY.items())), 6, "float32").folder in folders


def test_equal_images_are_missing_once(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY, 6, "float32")
    assert cache.missing(keys(3)[[2, 1, 2, 1, 0]]).tolist() == [0, 1, 4]


def test_hashes_that_agree_in_their_first_half_are_told_apart(tmp_path: Path) -> None:
    alike = keys(5)
    alike[:, 0] = alike[0, 0]
    cache = FeatureCache(tmp_path, KEY, 6, "float32")
    cache.add(alike[:4], rows(4))
    cache.refresh()
    assert cache.missing(alike).tolist() == [4]
    assert np.array_equal(cache.rows(alike[:4]), rows(4))


def test_several_processes_may_add_at_once(tmp_path: Path) -> None:
    one, other = (FeatureCache(tmp_path, KEY, 6, "float32") for _ in range(2))
    one.add(keys(3)[:2], rows(3)[:2])
    other.add(keys(3)[1:], rows(3)[1:])
    other.add(keys(3)[1:], rows(3)[1:])
    for cache in (one, other):
        cache.refresh()
        assert np.array_equal(cache.rows(keys(3)), rows(3))
    assert len(list(one.folder.iterdir())) == 2


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: dict[str, np.ndarray], path: Path) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path, KEY, 6, "float32")
    with monkeypatch.context() as patch:
        patch.setattr("headstart.features.cache.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.add(keys(3), rows(3))
    cache.refresh()
    assert cache.missing(keys(3)).tolist() == [0, 1, 2]


def test_a_damaged_file_is_named_and_its_rows_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(tmp_path, KEY, 6, "float32")
    cache.add(keys(5)[:3], rows(5)[:3])
    cache.add(keys(5)[3:], rows(5)[3:])
    damaged = min(cache.folder.iterdir(), key=lambda path: len(load_file(path)["keys"]))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    cache.refresh()
    assert f"{damaged} is damaged: its features are computed again" in caplog.text
    assert cache.missing(keys(5)).tolist() == [3, 4]
    with pytest.raises(UserError, match="was changed while it was used"):
        cache.rows(keys(5))
    cache.add(keys(5)[3:], rows(5)[3:])  # under the same name
    cache.refresh()
    assert np.array_equal(cache.rows(keys(5)), rows(5))


def test_a_file_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY, 6, "float32")
    cache.add(keys(2), rows(2))
    cache.refresh()
    (path,) = cache.folder.iterdir()
    path.write_bytes(b"?")
    with pytest.raises(UserError, match=rf"{path.name} is damaged: delete it"):
        cache.rows(keys(2))


def test_files_of_earlier_versions_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from headstart.stages import features  # noqa: PLC0415
    from helpers.images import params  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "headstart")
    write_prepared()
    Path("cache/features").mkdir(parents=True)
    Path("cache/features/c81a7f625a7dd4e38e2932ac1ad30a3a.sqlite").touch()
    changes = {"backbone.name": "test_resnet", "backbone.pretrained": False, "run.cache": "cache"}
    features.run(params(changes).declared(features.PARAMS))
    assert "are not used any more: `rm cache/features/*.sqlite`" in caplog.text


def test_an_image_is_known_by_its_content_and_its_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same content at the size for training and for evaluation are two images, since their pixels differ."""
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared()
    found = image_keys(prepared)
    for (first, second), row, split in zip(found.tolist(), manifest_rows(), prepared.splits.tolist(), strict=True):
        content = bytes.fromhex(row["sha256"])
        assert first.to_bytes(8, "little") == content[:8]
        assert second | 1 == int.from_bytes(content[8:16], "little") | 1
        assert second % 2 == (split == 0)
    assert len(np.unique(found, axis=0)) == len(prepared.ids)
    assert np.array_equal(image_keys(PreparedDataset.open()), found)


def test_hashes_with_equal_halves_are_told_apart(tmp_path: Path) -> None:
    every = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.uint64)
    every = np.random.default_rng(0).permutation(every)
    cache = FeatureCache(tmp_path, KEY, 1, "float32")
    for first in range(0, 20, 4):
        cache.add(every[first : first + 4], np.arange(first, first + 4)[:, None])
    cache.refresh()
    assert cache.missing(every).tolist() == [20, 21, 22, 23, 24]
    order = np.random.default_rng(1).permutation(20)
    assert cache.rows(every[order])[:, 0].tolist() == order.tolist()
