"""Equal to timm's transform: the pixels exactly, the normalised input to the last bit."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import create_transform

from headstart.images.preprocess import CROP_MODES, INTERPOLATIONS, Preprocessing

SIZES = [(1, 1), (7, 5), (31, 33), (32, 32), (36, 36), (37, 36), (100, 61), (61, 100), (200, 10), (13, 250), (333, 257)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config(**changes: Any) -> dict[str, Any]:
    usual = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    return usual | {"mean": MEAN, "std": STD} | changes


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8))


def assert_equal_to_timm(changed: dict[str, Any], size: tuple[int, int]) -> None:
    image, ours = noise(size), Preprocessing.of(changed)
    pixels = create_transform(**changed, is_training=False, normalize=False)(image)
    np.testing.assert_array_equal(np.asarray(ours.cropped(image)).transpose(2, 0, 1), pixels.numpy())
    normalized, expected = ours(image), create_transform(**changed, is_training=False)(image).numpy()
    assert normalized.dtype == np.float32
    assert normalized.flags.c_contiguous
    np.testing.assert_array_equal(normalized, expected)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("input_size", [(3, 32, 32), (3, 33, 33), (3, 24, 40), (3, 41, 24)])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.9, 0.95, 1.0])
def test_every_shape(crop_mode: str, input_size: tuple[int, int, int], crop_pct: float) -> None:
    changed = config(crop_mode=crop_mode, input_size=input_size, crop_pct=crop_pct)
    for size in SIZES:
        if crop_mode == "border" and max(size) > 19 * min(size):
            continue  # timm asks Pillow for an image without pixels where the shorter side rounds to nothing
        assert_equal_to_timm(changed, size)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation(interpolation: str) -> None:
    for crop_mode, size in itertools.product(CROP_MODES, [(50, 70), (20, 15)]):
        assert_equal_to_timm(config(interpolation=interpolation, crop_mode=crop_mode), size)


def test_every_aspect_near_the_square() -> None:
    """Sizes at which rounding to whole pixels, and of halves, matters."""
    for width, height in itertools.product(range(30, 60), (36, 37, 51)):
        assert_equal_to_timm(config(), (width, height))
        assert_equal_to_timm(config(input_size=(3, 32, 48), crop_mode="border"), (width, height))


def test_a_narrow_strip_keeps_a_pixel_where_timm_fails() -> None:
    narrow = Preprocessing.of(config(input_size=(3, 8, 8), crop_mode="border"))
    assert narrow.cropped(noise((200, 10))).size == (8, 8)
