"""A file of pixels at their own depth, opened: what its header says, and its planes when they are read."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import first_line, requirement
from headstart.images.bands import MAX_BANDS, Depth
from headstart.images.decode import BadImageError, ImageLimits, too_large

BYTES_A_PIXEL = 8
"""What a stored image's bands and planes together may take, for each of ``ImageLimits.max_pixels``."""
MOST_SAID = 200
FLOAT32_STEPS = 2**16
"""Numbers of 64 bits become float32 where it keeps their range to so many steps at least."""


class Values(NamedTuple):
    """An image's values, (planes, height, width, bands), and which of them are none: of that shape, or None."""

    values: NDArray[Any]
    invalid: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Stack:
    """An opened file: upright size, bands of a plane, planes, and the depth that the header lets one expect.

    Attributes:
        itemsize: bytes that a value takes as it is stored.
        read: returns the values of the first so many planes; raises anything for damaged files.
    """

    width: int
    height: int
    channels: int
    planes: int
    dtype: Depth
    itemsize: int
    read: Callable[[int], Values]

    def check(self, limits: ImageLimits) -> None:
        """Raise BadImageError where pixels, bands, planes or bytes are too many."""
        if min(self.width, self.height, self.channels, self.planes) < 1:
            raise BadImageError("damaged: an image without a pixel")
        limits.check(self.width, self.height)
        if self.channels > MAX_BANDS:
            raise BadImageError(f"{self.channels:,} bands: {MAX_BANDS} are the most; save those that matter")
        size = self.width * self.height * self.channels * self.planes * self.itemsize
        if size > BYTES_A_PIXEL * limits.most_pixels:
            planes = f"{self.planes:,} planes of " if self.planes > 1 else ""
            bands = f" in {self.channels} bands" if self.channels > 1 else ""
            what = f"{planes}{self.width} x {self.height} pixels{bands} take {size:,} bytes"
            raise BadImageError(too_large(what))


@contextlib.contextmanager
def damaged() -> Iterator[None]:
    """Turn what a reader raises into BadImageError of one line."""
    try:
        yield
    except BadImageError:
        raise
    except MemoryError:
        raise BadImageError("damaged, or too large for the memory") from None
    except Exception as error:  # noqa: BLE001  (readers raise anything for damaged files)
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"damaged: {said[:MOST_SAID]}") from None


def needed(name: str, error: ImportError) -> BadImageError:
    """Return what to say where the extra ``instruments`` is not installed."""
    return BadImageError(f"{name}: `pip install '{requirement('instruments')}'` reads it ({first_line(error)})")


def depth_of(dtype: np.dtype[Any]) -> Depth:
    """Return the depth at which values of a type are kept; raises BadImageError for no numbers."""
    if dtype.kind == "b" or dtype == np.uint8:
        return "uint8"
    if dtype == np.uint16:
        return "uint16"
    if dtype in (np.int8, np.int16):
        return "int16"
    if dtype.kind in "iuf":
        return "float32"
    raise BadImageError(f"pixels of type {dtype}: save them as uint8, uint16, int16 or float32")


def as_depth(values: NDArray[Any], depth: Depth, invalid: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Return values as a depth that holds them; raises BadImageError where float32 would lose what tells them apart."""
    kind = np.dtype(depth)
    if values.dtype == kind:
        return values
    if kind.kind != "f" or values.dtype.itemsize <= 2:
        return values.astype(kind)
    # Overflow is what is looked for, and what is no number, the caller's.
    with np.errstate(over="ignore", invalid="ignore"):
        result = values.astype(np.float32)
        valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if invalid is not None:
        valid &= ~invalid
    if valid.any():
        kept = values[valid]
        low, high = kept.min(), kept.max()
        lost = np.abs(kept.astype(np.float64) - result[valid].astype(np.float64)).max()
        if not lost * FLOAT32_STEPS <= float(high) - float(low):
            raise BadImageError(
                f"{values.dtype} values from {low} to {high}, which float32 does not tell apart: subtract an offset"
            )
    return result


def only_whole(values: NDArray[Any], depth: Depth) -> bool:
    """Return whether a depth of integers holds all values exactly."""
    ends = np.iinfo(depth)
    return bool((values >= ends.min).all() and (values <= ends.max).all() and (values == np.rint(values)).all())


def loaded(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Return a module of the extra ``instruments``; raises BadImageError where it is not installed."""
    try:
        return load()
    except ImportError as error:
        raise needed(name, error) from None
