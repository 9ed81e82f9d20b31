"""What the values of images with bands are: measured over training images as they are stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.data.dataset import evenly
from headstart.data.shards import Shards
from headstart.images.bands import Bands, PixelLayout, Pixels

IMAGES = 2048
"""Training images that are looked at, evenly over the manifest."""
PIXELS = 2**20
"""Pixels of all these together whose values are compared, evenly over each image."""
PERCENTILES = (0.1, 99.9)
"""Of a band's values: below the first are dead pixels and borders, above the last glare."""
LEAST_STD = 1e-6


class Found(NamedTuple):
    """The values of training images: (pixels, bands) of a sample, and the least and largest of each band (bands,)."""

    sample: Pixels
    least: NDArray[Any]
    largest: NDArray[Any]

    @classmethod
    def of(cls, shards: Shards, rows: NDArray[np.int64]) -> "Found":
        """Look at training images of which ``rows`` are the numbers."""
        rows = evenly(rows, IMAGES)
        samples, least, largest = [], [], []
        for row in rows.tolist():
            pixels = shards.pixels(row)
            pixels = pixels.reshape(-1, pixels.shape[2])
            samples.append(evenly(pixels, max(1, PIXELS // len(rows))))
            least.append(pixels.min(axis=0))
            largest.append(pixels.max(axis=0))
        return cls(np.concatenate(samples), np.min(least, axis=0), np.max(largest, axis=0))

    def describe(self, layout: PixelLayout) -> str:
        """Return a line for people: depth, values and, of whole numbers that use fewer, the bits."""
        least, largest = self.least.min(), self.largest.max()
        shown = ",.6g" if self.sample.dtype.kind == "f" else ","
        line = f"{layout}, values {least:{shown}} to {largest:{shown}}"
        if self.sample.dtype.kind == "u":
            line += f", {int(largest).bit_length()} bits used"
        return line


def check_keys(layout: PixelLayout, ranges: Sequence[Sequence[float]], rgb: Sequence[int] | None) -> None:
    """Raise UserError where params.yaml has neither one range nor as many as bands, or names a band that is not."""
    if len(ranges) not in (0, 1, layout.channels):
        raise UserError(f"prepare.range: {len(ranges)} pairs, but the images have {layout}: write one, or one for each")
    if rgb and max(rgb) > layout.channels:
        raise UserError(f"backbone.rgb: {max(rgb)}: the images have {layout}, counted from 1")


def measure_bands(
    found: Found,
    layout: PixelLayout,
    ranges: Sequence[Sequence[float]],
    *,
    rgb: Sequence[int] | None,
    own: tuple[Sequence[float], Sequence[float]],
) -> Bands:
    """Measure how a band's values become the model's input.

    Args:
        found: the values of training images.
        layout: of all images.
        ranges: the values that become 0 and 1, one pair for all bands or one for each; none: ``PERCENTILES``.
        rgb: the bands that are red, green and blue, counted from 1. They keep the backbone's own mean and deviation,
            8-bit ones all 256 levels, deeper ones one range for the three.
        own: the backbone's mean and standard deviation of each band, of pixels in [0, 1].
    """
    if ranges:
        low, high = np.broadcast_to(np.array(ranges, np.float64), (layout.channels, 2)).T
    else:
        low, high = _percentiles(found)
    colours = [band - 1 for band in rgb or ()]
    if colours and not ranges:
        low[colours], high[colours] = low[colours].min(), high[colours].max()
        if layout.dtype == "uint8":
            low[colours], high[colours] = 0, 255
    scaled = np.clip((found.sample - low) / (high - low), 0, 1)
    mean, std = scaled.mean(axis=0), scaled.std(axis=0)
    std[std < LEAST_STD] = 1
    for band in colours:
        mean[band], std[band] = own[0][band], own[1][band]
    shown = tuple(colours) or ((0, 1, 2) if layout.channels >= 3 else (0,))
    ends = tuple(low.tolist()), tuple(high.tolist())
    return Bands(layout, *ends, tuple(mean.tolist()), tuple(std.tolist()), shown)


def _percentiles(found: Found) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and largest values, float64 (bands,), without the outermost; of a constant band some range."""
    low, high = np.percentile(found.sample.astype(np.float64), PERCENTILES, axis=0)
    rare = low == high  # beside one value
    low[rare], high[rare] = found.least[rare], found.largest[rare]
    return low, np.where(low == high, low + np.maximum(1, np.abs(low) * LEAST_STD), high)
