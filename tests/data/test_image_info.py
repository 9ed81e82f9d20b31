"""A file and an image in memory are hashed, converted to RGB and resized alike."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from headstart.data.image_info import LabelledImage, TrainingResize, content_sha256, size_of, to_image
from headstart.images.decode import decode
from helpers.damaged import saved


def test_an_image_without_a_file_is_hashed_with_mode_and_size() -> None:
    images = [Image.new("L", (4, 2)), Image.new("L", (2, 4)), Image.new("P", (4, 2)), Image.new("L", (4, 2))]
    hashes = [content_sha256(LabelledImage(image, "x")) for image in images]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
    assert content_sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_file_and_an_image_of_a_data_set_become_rgb_alike() -> None:
    image = Image.new("LA", (2, 1), (100, 51))
    content = saved(image, "PNG")
    assert to_image(content) == to_image(LabelledImage(image, "x")) == decode(content)


def test_the_size_is_the_headers() -> None:
    image = Image.new("RGB", (60, 40))
    assert size_of(saved(image, "PNG")) == size_of(LabelledImage(image, "x")) == (60, 40)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (33, 200)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_images_keep_their_aspect(size: tuple[int, int], interpolation: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    resized = TrainingResize(30, interpolation)(image)
    assert min(resized.size) == 30
    assert max(resized.size) == int(30 * max(size) / min(size))
    assert resized == image.resize(resized.size, getattr(Image.Resampling, interpolation.upper()))


@pytest.mark.parametrize("side", [60, 61, None])
def test_training_images_are_never_enlarged(side: int | None) -> None:
    image = Image.new("RGB", (100, 60))
    assert TrainingResize(side, "bilinear")(image) is image
