"""Images that are no 8-bit RGB: how many bands of which depth they have, and what a band's values mean."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Depth = Literal["uint8", "uint16", "int16", "float32"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)
"""The types of pixels that are stored as they are."""
Planes = Literal["first", "max", "mean", "channels"]
PLANES: tuple[Planes, ...] = get_args(Planes)
"""What becomes of the planes of a stack: the first alone, their largest or mean values, or a band for each."""
MAX_BANDS = 32
PREVIEW_PIXELS = 4096
"""About how many pixels say between which values an image is drawn."""

Pixels = NDArray[Any]
"""An image's pixels, one of ``DEPTHS`` (height, width, bands)."""


@dataclass(frozen=True)
class PixelLayout:
    """What all images of a set have in common: bands of one depth; ``planes`` is None where no image is a stack."""

    channels: int
    dtype: Depth
    planes: Planes | None = None

    def __str__(self) -> str:
        return f"{self.channels} {'band' if self.channels == 1 else 'bands'} of {self.dtype}"


@dataclass(frozen=True)
class Bands:
    """A layout, and how a band's values become the model's input.

    ``low`` and ``high``, in the pixels' own units, become 0 and 1, and what lies beyond them too; ``mean`` and ``std``
    are of these. Each has a number for each band. ``shown`` are the indices of the one or three bands that people see.
    """

    layout: PixelLayout
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shown: tuple[int, ...]

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Bands":
        """Read what ``record`` returned."""
        numbers = {name: tuple(about[name]) for name in ("low", "high", "mean", "std", "shown")}
        return cls(PixelLayout(**about["layout"]), **numbers)

    def record(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        about = asdict(self)
        return {name: list(each) if isinstance(each, tuple) else each for name, each in about.items()}

    def normalize(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return pixels (..., bands) as the model's input, float32 of that shape."""
        low, high, factor, summand = self.constants()
        return (np.clip(pixels.astype(np.float32), low, high) - low) * factor + summand

    def constants(self) -> tuple[NDArray[np.float32], ...]:
        """Return low, high, factor and summand, float32 (bands,) each: the input is (clip(x) − low) · factor + summand.

        The subtraction comes first: of a narrow range far from 0 a single product and sum would keep few digits.
        """
        low, high, mean, std = (np.array(each) for each in (self.low, self.high, self.mean, self.std))
        factor = 1 / ((high - low) * std)
        return tuple(each.astype(np.float32) for each in (low, high, factor, -mean / std))

    def show(self, pixels: Pixels) -> Image.Image:
        """Return pixels (height, width, bands) as RGB for people: grey or colours, from ``low`` to ``high``."""
        shown = list(self.shown)
        low, high = (np.array(each, np.float32)[shown] for each in (self.low, self.high))
        return _drawn(pixels[..., shown], low, high)

    def stretch(self) -> str:
        """Return for people what ``show`` draws, such as "bands 3, 2, 1 from 0 to 3,000"; bands count from 1."""
        names = ", ".join(str(band + 1) for band in self.shown)
        return f"{'band' if len(self.shown) == 1 else 'bands'} {names} from {self.ranges(self.shown)}"

    def ranges(self, bands: Sequence[int] | None = None) -> str:
        """Return for people what becomes 0 and 1 of these bands, by their indices: "0 to 3,000", once where equal."""
        of = range(self.layout.channels) if bands is None else bands
        return ", ".join(dict.fromkeys(f"{said(self.low[band])} to {said(self.high[band])}" for band in of))


def said(value: float) -> str:
    """Return a band's value for people: 10,213, -160 or 0.0312."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def preview(pixels: Pixels) -> Image.Image:
    """Return an image's first band, or its first three, as RGB, each from its own 1 % to its 99 % percentile.

    Of a large image some thousand pixels tell these, so that a dead or hot pixel does not.
    """
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    flat = shown.reshape(-1, shown.shape[2])
    low, high = np.percentile(flat[:: max(1, len(flat) // PREVIEW_PIXELS)], (1, 99), axis=0)
    return _drawn(shown, low.astype(np.float32), high.astype(np.float32))


def _drawn(pixels: Pixels, low: NDArray[np.float32], high: NDArray[np.float32]) -> Image.Image:
    levels = (pixels.astype(np.float32) - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    drawn = np.rint(255 * np.clip(levels, 0, 1)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(drawn, (*drawn.shape[:2], 3))))
