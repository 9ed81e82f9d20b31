"""timm's evaluation transform with numpy and Pillow only, bit for bit equal to timm's own on 8-bit RGB.

It follows ``timm.data.transforms_factory.transforms_imagenet_eval`` and the roundings of torchvision's ``Resize`` and
``CenterCrop``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.images.bands import Bands, Pixels

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    It is resized to the input's sides, in pixels, divided by ``crop_pct``. The crop mode ``center`` keeps its aspect
    and crops the longer side, ``squash`` does not keep it, ``border`` keeps it and pads the shorter side with the mean
    colour. ``mean`` and ``std`` are of each channel, for pixels in [0, 1]. With ``bands`` an image is an array,
    (height, width, bands), and they say how its values become the input.
    """

    height: int
    width: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    bands: Bands | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read timm's data config, ``input_size`` (bands, height, width) and so on; and ``bands``, if there are."""
        bands = Bands.of(config["bands"]) if "bands" in config else None
        _, height, width = config["input_size"]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return cls(height, width, config["interpolation"], mean, std, config["crop_pct"], config["crop_mode"], bands)

    def __call__(self, image: Image.Image | Pixels) -> NDArray[np.float32]:
        """Return an image, RGB or with ``bands``, as the model's input, float32 (bands, height, width)."""
        if not isinstance(image, Image.Image):
            return self._normalized(self.crop(self.resized(image)))
        pixels = np.ascontiguousarray(np.asarray(self.cropped(image)).transpose(2, 0, 1)).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return pixels

    def _normalized(self, pixels: Pixels) -> NDArray[np.float32]:
        assert self.bands is not None
        return np.ascontiguousarray(self.bands.normalize(pixels).transpose(2, 0, 1))

    def resized(self, pixels: Pixels) -> Pixels:
        """Resize pixels (height, width, bands) as before the crop."""
        return resize_bands(pixels, self._resized_size(pixels.shape[1], pixels.shape[0]), self.interpolation)

    def crop(self, pixels: Pixels) -> Pixels:
        """Crop resized pixels to the input's sides; around smaller ones are the lowest values, or the mean ones."""
        assert self.bands is not None
        height, width, _ = pixels.shape
        if (height, width) == (self.height, self.width):
            return pixels
        low, high, mean = (np.array(each) for each in (self.bands.low, self.bands.high, self.bands.mean))
        fill = low + (high - low) * mean if self.crop_mode == "border" else low
        canvas = np.empty((self.height, self.width, pixels.shape[2]), pixels.dtype)
        canvas[:] = _as_depth(fill, pixels.dtype)
        top, left = _offset(self.height, height), _offset(self.width, width)
        inside = pixels[max(0, -top) : self.height - top, max(0, -left) : self.width - left]
        top, left = max(0, top), max(0, left)
        canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return canvas

    def cropped(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image to width x height."""
        size = self._resized_size(*image.size)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        # The colour around an image smaller than the input.
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0, 0, 0)
        canvas = Image.new("RGB", (self.width, self.height), fill)
        canvas.paste(image, (_offset(self.width, image.width), _offset(self.height, image.height)))
        return canvas

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after the resize."""
        target_width, target_height = (math.floor(side / self.crop_pct) for side in (self.width, self.height))
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "center" and target_width == target_height:
            longer = int(target_width * max(width, height) / min(width, height))
            return (target_width, longer) if width <= height else (longer, target_width)
        chosen = max if self.crop_mode == "border" else min
        ratio = chosen(height / target_height, width / target_width)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def resize_bands(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Resize pixels (height, width, bands) to ``size``, width and height, by Pillow, each band alone; its depth stays.

    8-bit bands come out as those of Pillow's RGB images do; others are computed in float32, and whole numbers rounded.
    """
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    computed = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    resized = np.empty((size[1], size[0], pixels.shape[2]), computed.dtype)
    for band in range(pixels.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(computed[..., band]))
        resized[..., band] = np.asarray(plane.resize(size, INTERPOLATIONS[interpolation]))
    return _as_depth(resized, pixels.dtype)


def _as_depth(values: NDArray[Any], depth: np.dtype[Any]) -> Pixels:
    """Convert values to a depth, rounded and clipped where it has whole numbers."""
    if depth.kind not in "iu":
        return values.astype(depth, copy=False)
    ends = np.iinfo(depth)
    whole: Pixels = np.clip(np.rint(values), ends.min, ends.max).astype(depth)
    return whole


def _offset(input_side: int, image_side: int) -> int:
    """Return where the image's edge lies on the input; negative if the image is cropped."""
    return (input_side - image_side) // 2 if image_side <= input_side else -round((image_side - input_side) / 2)
