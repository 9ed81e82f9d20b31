"""Random crops and flips, each picture's a pure function of numbers that are drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812  (torchvision's own convention)

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 3
"""Uniform numbers that one picture takes: area and shape of each attempt, the place of the crop, the flip."""


@dataclass(frozen=True)
class CropAndFlip:
    """RandomResizedCrop (Szegedy et al. 2015, "Going deeper with convolutions") and a horizontal flip.

    Attributes:
        size: height and width of the result, in pixels.
        scale: least and largest share of the picture's area.
        ratio: least and largest ratio of width to height.
        hflip: probability of a flip.
        interpolation: timm's name, such as ``bicubic``.
    """

    size: tuple[int, int]
    scale: Sequence[float]
    ratio: Sequence[float]
    hflip: float
    interpolation: str

    def __call__(self, picture: NDArray[np.uint8], draws: NDArray[np.float64]) -> Tensor:
        """Crop, resize and perhaps flip one picture.

        Args:
            picture: uint8 (height, width, 3).
            draws: float64 (DRAWS,), uniform in [0, 1).

        Returns:
            uint8 (*size, 3).
        """
        top, left, height, width = crop_box(picture.shape[0], picture.shape[1], draws, self.scale, self.ratio)
        crop = torch.tensor(picture[top : top + height, left : left + width])
        resized: Tensor = F.resize(
            crop.permute(2, 0, 1), list(self.size), interpolation=InterpolationMode(self.interpolation), antialias=True
        )
        if draws[-1] < self.hflip:
            resized = F.horizontal_flip(resized)
        return resized.permute(1, 2, 0)


def crop_box(
    height: int, width: int, draws: NDArray[np.float64], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Choose the box of a RandomResizedCrop as torchvision does: the first of ten attempts that fits, else the centre.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        draws: float64 (DRAWS,), uniform in [0, 1).
        scale: least and largest share of the picture's area.
        ratio: least and largest ratio of width to height.

    Returns:
        top, left, height, width of the box.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:ATTEMPTS])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    shape = np.exp(low + (high - low) * draws[ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        w, h = int(widths[first]), int(heights[first])
        down, right = draws[2 * ATTEMPTS], draws[2 * ATTEMPTS + 1]
        return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    # The whole picture, cut to the nearest allowed ratio.
    if width / height < ratio[0]:
        w, h = width, min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w, h = min(width, round(height * ratio[1])), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w
