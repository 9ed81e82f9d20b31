"""The estimate of a store's size, how images are therefore packed, and what earlier versions wrote."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
from PIL import Image

from headstart.data.image_info import TrainingResize
from headstart.data.packing import Resizes, SizeEstimate, choose_store, sizes_of, store_spec
from headstart.data.shards import INDEX_DTYPE, Store
from headstart.data.splits import NOT_GIVEN, TEST, TRAIN

RESIZES = Resizes(TrainingResize(30, "bilinear"), lambda image: image.resize((20, 20)))


def encoded(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_the_estimate_is_of_the_stored_sizes() -> None:
    files = {"large": encoded(80, 60), "small": encoded(10, 10), "bad": b"?"}
    assert sizes_of(files, files.__getitem__) == [(80, 60), (10, 10)]
    estimate = SizeEstimate.of([(80, 60), (10, 10)], RESIZES)
    assert estimate == SizeEstimate(3 * (40 * 30 + 20 * 20) / 2, 3 * 20 * 20)
    assert estimate.total({TRAIN: 5, TEST: 3}, 0.0) == pytest.approx(5 * estimate.training + 3 * estimate.evaluation)
    assert estimate.total({NOT_GIVEN: 10}, 0.3) == pytest.approx(7 * estimate.training + 3 * estimate.evaluation)
    assert estimate.total({TRAIN: 10, TEST: 5}, 0.2) == pytest.approx(8 * estimate.training + 7 * estimate.evaluation)
    assert SizeEstimate.of([], RESIZES).total({}, 0.0) == 0


def test_a_shard_has_at_most_128_mib_and_1024_images() -> None:
    assert SizeEstimate(1e6, 2e6).shard_images("raw", 10**6) == 67
    assert SizeEstimate(2e6, 1e6).shard_images("jpeg", 10**6) == 402
    assert SizeEstimate(1e3, 1e3).shard_images("raw", 10**6) == 1024
    assert SizeEstimate(1e9, 1.0).shard_images("raw", 10**6) == 1


def test_few_images_are_in_as_many_shards_as_processes_may_want() -> None:
    estimate = SizeEstimate(1e3, 1e3)
    assert [estimate.shard_images("raw", count) for count in (10, 1_000, 3_000, 10_000, 20_000)] == [
        64, 64, 128, 512, 1024
    ]  # fmt: skip


def test_a_thousand_million_images_are_in_some_ten_thousand_shards() -> None:
    assert SizeEstimate(1e3, 1e3).shard_images("raw", 10**9) == 10**9 // 65_536
    assert SizeEstimate(1e6, 1e6).shard_images("raw", 10**9) == 134  # as 128 MiB hold


def test_stores_of_earlier_versions_are_reused() -> None:
    """The spec and the types of the rows are as the first version wrote them."""
    spec = {"input": {"input_size": [3, 16, 12]}, "train_side": 24, "store": "raw"}
    spec |= {"pillow": PIL.__version__, "pixels_version": 3}
    assert store_spec({"input_size": [3, 16, 12]}, 1.5, "raw") == spec
    assert INDEX_DTYPE.names == ("id", "offset", "bytes", "crc32", "shard", "label", "height", "width", "split")


def test_a_tiny_image_is_enlarged_for_training_as_for_evaluation() -> None:
    for side, expected in ((8, 20), (19, 20), (25, 25), (40, 30)):
        assert RESIZES.apply(Image.new("RGB", (side, side)), for_training=True).size == (expected, expected)
        assert RESIZES.apply(Image.new("RGB", (side, side)), for_training=False).size == (20, 20)


@pytest.mark.parametrize(
    ("size", "free", "previous", "expected"),
    [
        (40, 100, None, "raw"),
        (60, 100, None, "jpeg"),  # more than half of the disk
        (60, 100, "raw", "raw"),  # as before
        (110, 100, "raw", "jpeg"),
        (600, 10_000, "raw", "jpeg"),  # more than half of the memory
    ],
)
def test_pixels_are_stored_where_they_fit(
    caplog: pytest.LogCaptureFixture, size: int, free: int, previous: Store | None, expected: str
) -> None:
    caplog.set_level("INFO")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 10**9))
        patch.setattr("os.sysconf", {"SC_PAGE_SIZE": 10**6, "SC_PHYS_PAGES": 10**6}.__getitem__)
        assert choose_store("auto", size * 10**9, Path(), previous=previous) == expected
    assert f"take about {size}.00 GB; free disk is {free}.0 GB, memory 1000.0 GB" in caplog.text


def test_jpegs_stay_jpegs_so_that_only_new_images_are_decoded() -> None:
    assert choose_store("auto", 0, Path(), previous="jpeg") == "jpeg"


def test_a_chosen_store_is_kept() -> None:
    assert choose_store("raw", 0, Path(), previous="jpeg") == "raw"
    assert choose_store("raw", 1e30, Path(), previous=None) == "raw"
    assert choose_store("jpeg", 0, Path(), previous=None) == "jpeg"
