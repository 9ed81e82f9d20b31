"""Bands: from pixels of any depth to the model's input and to what people see."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.loader import Normalize
from headstart.images.bands import DEPTHS, Bands, Depth, PixelLayout, preview
from headstart.images.preprocess import Preprocessing, resize_bands

CONFIG = {
    "input_size": [2, 12, 12], "interpolation": "bicubic", "mean": [0.25, 0.5], "std": [0.5, 0.125],
    "crop_pct": 0.75, "crop_mode": "center",
}  # fmt: skip


def bands(depth: Depth, *, low: tuple[float, ...], high: tuple[float, ...]) -> Bands:
    return Bands(PixelLayout(2, depth), low, high, (0.25, 0.5), (0.5, 0.125), (0,))


def drawn(depth: Depth, height: int, width: int, channels: int = 2) -> np.ndarray:
    generator = np.random.default_rng(0)
    if depth == "float32":
        return generator.normal(size=(height, width, channels)).astype(np.float32)
    ends = np.iinfo(depth)
    return generator.integers(ends.min, ends.max, (height, width, channels), depth, endpoint=True)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_input_is_by_definition_and_the_same_by_torch_to_the_last_bit(depth: Depth) -> None:
    low, high = ((-1.0, 0.0), (1.0, 2.0)) if depth == "float32" else ((10.0, 100.0), (110.0, 30_000.0))
    about = bands(depth, low=low, high=high)
    pixels = drawn(depth, 5, 7)
    scaled = np.clip((pixels - np.array(low)) / (np.array(high) - np.array(low)), 0, 1)
    expected = (scaled - about.mean) / about.std
    found = about.normalize(pixels)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    by_torch = Normalize(CONFIG | {"bands": about.record()})(torch.from_numpy(pixels.astype(np.float32))[None])
    assert np.array_equal(by_torch[0].permute(1, 2, 0).numpy(), found)


def test_a_narrow_range_far_from_zero_keeps_its_digits() -> None:
    about = bands("uint16", low=(60_000.0, 0.0), high=(60_010.0, 1.0))
    pixels = np.arange(60_000, 60_011, dtype=np.uint16).reshape(1, -1, 1).repeat(2, axis=2)
    np.testing.assert_allclose(about.normalize(pixels)[0, :, 0], (np.arange(11) / 10 - 0.25) / 0.5, atol=1e-6)


def test_what_is_shown_is_said_with_bands_counted_from_1() -> None:
    one = Bands(PixelLayout(4, "int16"), (-160.0,) * 4, (240.0,) * 4, (0.5,) * 4, (0.2,) * 4, (3,))
    assert one.stretch() == "band 4 from -160 to 240"
    colours = replace(one, shown=(2, 1, 0), low=(0.0,) * 4, high=(3000.0,) * 4)
    assert colours.stretch() == "bands 3, 2, 1 from 0 to 3,000"
    several = replace(one, shown=(0, 1, 2), low=(0.03125, 0.0, 0.0, 1.0), high=(10213.4, 0.5, 1.0, 2.0))
    assert several.stretch() == "bands 1, 2, 3 from 0.0312 to 10,213, 0 to 0.5, 0 to 1"
    assert several.ranges() == "0.0312 to 10,213, 0 to 0.5, 0 to 1, 1 to 2"


def test_the_record_survives_json() -> None:
    about = bands("int16", low=(-1000.0, 0.1), high=(400.0, 0.3))
    assert Bands.of(json.loads(json.dumps(about.record()))) == about


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_resize_is_pillows_of_each_band(depth: Depth, interpolation: str) -> None:
    pixels = drawn(depth, 20, 30, channels=3)
    resized = resize_bands(pixels, (11, 9), interpolation)
    assert resized.dtype == depth
    for band in range(3):
        plane = Image.fromarray(pixels[..., band].astype(np.float32)).resize(
            (11, 9), Image.Resampling[interpolation.upper()]
        )
        expected = np.asarray(plane, np.float64)
        if depth != "float32":
            expected = np.clip(np.rint(expected), np.iinfo(depth).min, np.iinfo(depth).max)
        np.testing.assert_allclose(resized[..., band], expected, atol=1 if depth == "uint8" else 0)
    if depth == "uint8":  # as of Pillow's RGB images
        rgb = Image.fromarray(pixels).resize((11, 9), Image.Resampling[interpolation.upper()])
        assert np.array_equal(resized, np.asarray(rgb))


def test_an_8_bit_image_comes_out_as_by_the_transform_of_rgb() -> None:
    generator = np.random.default_rng(0)
    for crop_mode in ("center", "squash", "border"):
        for height, width in ((40, 30), (30, 41), (16, 16), (9, 60)):
            pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
            config = CONFIG | {
                "input_size": [3, 12, 12],
                "mean": [0.5, 0.4, 0.3],
                "std": [0.2] * 3,
                "crop_mode": crop_mode,
            }
            about = Bands(PixelLayout(3, "uint8"), (0,) * 3, (255,) * 3, (0.5, 0.4, 0.3), (0.2,) * 3, (0, 1, 2))
            expected = Preprocessing.of(config)(Image.fromarray(pixels))
            found = Preprocessing.of(config | {"bands": about.record()})(pixels)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_people_see_the_range_in_grey_or_colours() -> None:
    about = bands("uint16", low=(100.0, 0.0), high=(200.0, 1.0))
    pixels = np.array([[[50, 0], [100, 0], [150, 0], [300, 0]]], np.uint16)
    assert np.asarray(about.show(pixels))[0].tolist() == [[0] * 3, [0] * 3, [128] * 3, [255] * 3]
    colours = Bands(PixelLayout(4, "uint8"), (0,) * 4, (255,) * 4, (0.5,) * 4, (1.0,) * 4, (2, 1, 0))
    assert np.asarray(colours.show(np.array([[[1, 2, 3, 4]]], np.uint8))).tolist() == [[[3, 2, 1]]]


def test_a_preview_is_stretched_by_itself_and_a_constant_image_is_black() -> None:
    pixels = np.repeat([[[-5, 9], [5, 9]]], 60, axis=0).astype(np.int16)
    pixels[0, 0] = 30_000  # a hot pixel
    assert np.asarray(preview(pixels))[1].tolist() == [[0] * 3, [255] * 3]
    assert not np.asarray(preview(np.full((2, 2, 1), 7, np.float32))).any()
