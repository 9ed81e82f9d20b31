"""Images decoded: from a file's bytes to upright RGB pixels, with Pillow and numpy alone."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Longest side over shortest: the stored row of a longer strip is out of proportion to the square that a model sees.
MAX_ASPECT_RATIO = 20
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImageError(Exception):
    """A file that is no usable image; the message is the reason."""


class _NoWarnings:
    """Silences warnings while any thread decodes: ``warnings.catch_warnings`` by itself is not made for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings(action="ignore")

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


# Pillow warns of what it can read after all: odd metadata, up to twice MAX_IMAGE_PIXELS.
_NO_WARNINGS = _NoWarnings()


def decode(content: bytes) -> Image.Image:
    """Decode a file's first frame to RGB, upright as its EXIF orientation says; many threads may do so at once.

    Raises:
        BadImageError: empty, not an image, truncated, damaged, too large or too long a strip.
    """
    with _explaining():
        return to_upright_rgb(_opened(content))


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an image that Pillow has opened into RGB, upright as its EXIF orientation says; raises BadImageError."""
    with _explaining():
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def header_size(content: bytes) -> tuple[int, int]:
    """Return width and height from a file's header, before the EXIF orientation; raises BadImageError."""
    with _explaining():
        return _opened(content).size


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn what Pillow raises into reasons."""
    try:
        with _NO_WARNINGS:
            yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"decompression bomb: {error}") from None
    except Exception as error:  # noqa: BLE001  (on damaged files Pillow's decoders raise anything, from OSError to IndexError)
        raise BadImageError(f"damaged: {error or type(error).__name__}") from None


def _opened(content: bytes) -> Image.Image:
    """Read the header; what it alone rules out is not decoded."""
    if not content:
        raise BadImageError("the file is empty")
    image = Image.open(io.BytesIO(content))
    if image.format == "EPS":
        raise BadImageError("a PostScript program, not an image")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{image.width} x {image.height} pixels: longer than {MAX_ASPECT_RATIO} times its width")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB: 16-bit grey is scaled, transparency is put on white.

    Raises:
        BadImageError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise BadImageError("floating-point pixels: which value is white is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        # Pillow knows no way from La, greys multiplied with alpha, but over LA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Scale greys 0..65535 to 0..255 (Pillow's own conversion clips them at 255)."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError(f"32-bit pixels from {values.min()} to {values.max()}: save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
