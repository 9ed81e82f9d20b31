"""timm's evaluation transform with numpy and Pillow only, bit for bit equal to timm's own.

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

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    It is resized to the input's sides, in pixels, divided by ``crop_pct``. The crop mode ``center`` keeps its aspect
    and crops the longer side, ``squash`` does not keep it, ``border`` keeps it and pads the shorter side with the mean
    colour. ``mean`` and ``std`` are of each channel, for pixels in [0, 1].
    """

    height: int
    width: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read timm's data config: ``input_size`` (3, height, width), ``interpolation``, ``mean`` and so on."""
        _, height, width = config["input_size"]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return cls(height, width, config["interpolation"], mean, std, config["crop_pct"], config["crop_mode"])

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB image as the model's input, float32 (3, height, width)."""
        pixels = np.ascontiguousarray(np.asarray(self.cropped(image)).transpose(2, 0, 1)).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return pixels

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


def _offset(input_side: int, image_side: int) -> int:
    """Return where the image's edge lies on the input; negative if the image is cropped."""
    return (input_side - image_side) // 2 if image_side <= input_side else -round((image_side - input_side) / 2)
