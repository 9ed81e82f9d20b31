"""The range, mean and deviation of bands, against NumPy's over all pixels."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from headstart.core.errors import UserError
from headstart.data.band_statistics import Found, check_keys, measure_bands
from headstart.data.shards import INDEX_DTYPE, SHARD_HEADER, Shards, pack_image, shard_header, shard_path
from headstart.images.bands import DEPTHS, Bands, Depth, PixelLayout, Pixels

OWN = ([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(images: list[Pixels]) -> Found:
    """Store images and look at all but the first, which is not trained on."""
    layout = PixelLayout(images[0].shape[2], images[0].dtype.name)  # type: ignore[arg-type]
    content, rows = shard_header("raw", layout), []
    for number, image in enumerate(images):
        packed = pack_image(image, "raw")
        rows.append((number, len(content), len(packed), crc32(packed), 0, 0, *image.shape[:2], 0))
        content += packed
    assert len(content) > SHARD_HEADER
    shard_path(Path(), 0).write_bytes(content)
    return Found.of(Shards(Path(), np.array(rows, INDEX_DTYPE)), np.arange(1, len(images)))


def images(depth: Depth) -> list[Pixels]:
    generator = np.random.default_rng(0)
    drawn = generator.normal(2000, [1, 10, 100, 500], (6, 40, 30, 4)).astype(depth)
    drawn[0] = 0
    return [*drawn]


@pytest.mark.parametrize("depth", [each for each in DEPTHS if each != "uint8"])
def test_percentiles_mean_and_deviation_are_of_the_training_images(depth: Depth) -> None:
    pixels = np.concatenate([image.reshape(-1, 4) for image in images(depth)[1:]]).astype(np.float64)
    about = measure_bands(found(images(depth)), PixelLayout(4, depth), [], rgb=None, own=OWN)
    low, high = np.percentile(pixels, [0.1, 99.9], axis=0)
    assert about.low == tuple(low)
    assert about.high == tuple(high)
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    np.testing.assert_allclose(about.mean, scaled.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(about.std, scaled.std(axis=0), rtol=1e-9)
    assert about.shown == (0, 1, 2)


def test_of_very_many_pixels_a_part_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.band_statistics.PIXELS", 500)
    some = found(images("int16"))
    assert len(some.sample) == 500
    assert some.largest[3] == max(int(image[..., 3].max()) for image in images("int16")[1:])


def test_a_given_range_is_taken_for_all_bands_or_for_each() -> None:
    of_all = measure_bands(found(images("int16")), PixelLayout(4, "int16"), [[0, 4000]], rgb=None, own=OWN)
    assert (of_all.low, of_all.high) == ((0.0,) * 4, (4000.0,) * 4)
    pairs = [[0.0, 1000.0 * (i + 1)] for i in range(4)]
    of_each = measure_bands(found(images("int16")), PixelLayout(4, "int16"), pairs, rgb=None, own=OWN)
    assert of_each.high == (1000.0, 2000.0, 3000.0, 4000.0)
    with pytest.raises(UserError, match=r"prepare\.range: 3 pairs, but the images have 4 bands of int16"):
        check_keys(PixelLayout(4, "int16"), pairs[:3], None)


def test_colours_keep_the_backbones_mean_and_one_range() -> None:
    about = measure_bands(found(images("int16")), PixelLayout(4, "int16"), [], rgb=[4, 3, 2], own=OWN)
    assert about.mean[1:] == (0.2, 0.3, 0.4)
    assert about.std[1:] == (0.6, 0.7, 0.8)
    assert len(set(about.low[1:])) == len(set(about.high[1:])) == 1
    assert about.low[1] < about.low[0] < about.high[0] < about.high[1]
    assert about.shown == (3, 2, 1)
    bright = [np.full((4, 4, 4), 200, np.uint8)] * 3
    eight_bits = measure_bands(found(bright), PixelLayout(4, "uint8"), [], rgb=[1, 2, 3], own=OWN)
    assert (eight_bits.low, eight_bits.high) == ((0, 0, 0, 200), (255, 255, 255, 201))
    with pytest.raises(UserError, match=r"backbone\.rgb: 5: the images have 4 bands"):
        check_keys(PixelLayout(4, "uint8"), [], [5, 2, 3])


def test_a_constant_band_and_a_rare_value_have_a_range() -> None:
    rare = [np.zeros((100, 100, 2), np.uint16) for _ in range(3)]
    rare[1][5, 5, 1] = 900
    about: Bands = measure_bands(found(rare), PixelLayout(2, "uint16"), [], rgb=None, own=([0] * 2, [1] * 2))
    assert (about.low, about.high) == ((0, 0), (1, 900))
    assert about.std[0] == 1
    assert np.isfinite(about.normalize(rare[1])).all()


def test_what_was_found_is_said() -> None:
    deep = [np.full((4, 4, 13), 3000, np.uint16), np.full((4, 4, 13), 4000, np.uint16)]
    assert found(deep).describe(PixelLayout(13, "uint16")) == "13 bands of uint16, values 4,000 to 4,000, 12 bits used"
    assert found([np.full((4, 4, 1), -5.5, np.float32)] * 2).describe(PixelLayout(1, "float32")) == (
        "1 band of float32, values -5.5 to -5.5"
    )
