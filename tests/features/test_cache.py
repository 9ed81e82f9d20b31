import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from headstart.core.errors import UserError
from headstart.features.cache import FeatureCache, image_key

KEY = {"weights": "abc", "input": {"input_size": [3, 32, 32]}, "dtype": "float32"}


def names(count: int) -> list[bytes]:
    return [bytes([i]) * 16 for i in range(count)]


def rows(count: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_outlive_the_cache_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    written = rows(5, dtype)
    with closing(FeatureCache(tmp_path / "deep", KEY, 6, dtype)) as cache:
        assert list(cache.missing(names(5))) == [True] * 5
        cache.add(names(3), written[:3])
        assert list(cache.missing(names(5))) == [False] * 3 + [True] * 2
    with closing(FeatureCache(tmp_path / "deep", KEY, 6, dtype)) as cache:
        assert list(cache.missing(reversed(names(5)))) == [True] * 2 + [False] * 3
        for name, row in zip(names(3), written, strict=False):
            assert cache.row(name).dtype == dtype
            assert cache.row(name).tobytes() == row.tobytes()


def test_another_way_of_computing_has_another_file(tmp_path: Path) -> None:
    paths = set()
    for change in ({}, {"weights": "abd"}, {"input": {"input_size": [3, 32, 33]}}, {"dtype": "float16"}):
        with closing(FeatureCache(tmp_path, {**KEY, **change}, 6, "float32")) as cache:
            assert list(cache.missing(names(1))) == [True]
            cache.add(names(1), rows(1))
            paths.add(cache.path)
    assert len(paths) == 4
    with closing(FeatureCache(tmp_path, dict(reversed(KEY.items())), 6, "float32")) as cache:
        assert cache.path in paths  # the order of the keys is no part of them


def test_the_first_row_of_an_image_stays(tmp_path: Path) -> None:
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        cache.add(names(1), rows(2)[:1])
        cache.add(names(2), rows(2)[::-1])
        assert cache.row(names(1)[0]).tobytes() == rows(2)[0].tobytes()


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        with pytest.raises(ValueError, match="zip"):
            cache.add(names(3), rows(2))
        assert list(cache.missing(names(3))) == [True] * 3


def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    with (
        closing(FeatureCache(tmp_path, KEY, 6, "float32")) as one,
        closing(FeatureCache(tmp_path, KEY, 6, "float32")) as other,
    ):
        one.add(names(1), rows(1))
        assert list(other.missing(names(2))) == [False, True]
        other.add(names(2), rows(2))
        assert one.row(names(2)[1]).tobytes() == rows(2)[1].tobytes()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        cache.add(names(2), rows(2))
    with (
        closing(FeatureCache(tmp_path, KEY, 7, "float32")) as cache,
        pytest.raises(UserError, match=r"\.sqlite is damaged"),
    ):
        cache.row(names(1)[0])
    with (
        closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache,
        pytest.raises(UserError, match=r"\.sqlite is damaged"),
    ):
        cache.row(b"no such image")
    cache.path.write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match="can't be used") as caught:
        FeatureCache(tmp_path, KEY, 6, "float32")
    assert cache.path.name in str(caught.value)


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    images = [i.to_bytes(16, "big") for i in range(2000)]
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        cache.add(images, np.zeros((len(images), 6)))
    content = bytearray(cache.path.read_bytes())
    content[8192:-4096] = b"\xaa" * (len(content) - 8192 - 4096)
    cache.path.write_bytes(content)
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        with pytest.raises(UserError, match=r"\.sqlite"):
            list(cache.missing(images))
        with pytest.raises(UserError, match=r"\.sqlite"):
            cache.row(images[1000])


def test_the_rows_of_earlier_versions_are_used(tmp_path: Path) -> None:
    """File name, table and image keys are as the first version wrote them."""
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert image_key(pixels, training=False).hex() == "f5711afc78ea9a7cea30619fd1a8363a"
    assert image_key(pixels, training=True).hex() == "608931a4786a3ab4d04dc039b66d19d3"
    with sqlite3.connect(tmp_path / "c81a7f625a7dd4e38e2932ac1ad30a3a.sqlite") as database:
        database.execute("CREATE TABLE rows (picture BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
        database.execute("INSERT INTO rows VALUES (?, ?)", (names(1)[0], rows(1).tobytes()))
    database.close()
    with closing(FeatureCache(tmp_path, KEY, 6, "float32")) as cache:
        np.testing.assert_array_equal(cache.row(names(1)[0]), rows(1)[0])


def test_an_image_is_named_by_its_pixels_its_shape_and_its_use() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    key = image_key(pixels, training=False)
    assert len(key) == 16
    assert image_key(pixels.copy(), training=False) == key
    assert image_key(np.asfortranarray(pixels), training=False) == key  # whatever the strides
    assert image_key(pixels, training=True) != key
    changed = pixels.copy()
    changed[3, 5, 2] ^= 1
    for other in (changed, pixels.reshape(6, 4, 3), pixels.transpose(1, 0, 2)):
        assert image_key(other, training=False) != key
