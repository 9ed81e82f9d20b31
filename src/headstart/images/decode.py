"""Decoding: from a file's bytes to upright RGB pixels, with Pillow and numpy only."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Longest side over shortest. A longer strip would be stored far larger than the square that a model sees of it.
MAX_ASPECT_RATIO = 20
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class BadImageError(Exception):
    """A file is not a usable image; the message is the reason."""


class _NoWarnings:
    """Ignore warnings while any thread decodes: ``warnings.catch_warnings`` alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.close()


# Pillow warns about images that it still reads: with unusual metadata, or with up to twice MAX_IMAGE_PIXELS.
_NO_WARNINGS = _NoWarnings()


def decode(content: bytes) -> Image.Image:
    """Decode a file's first frame to RGB, upright by its EXIF orientation; thread-safe; raises BadImageError."""
    with _bad_image_errors():
        return to_upright_rgb(_open(content))


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened to RGB, upright by its EXIF orientation; raises BadImageError."""
    with _bad_image_errors():
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def header_size(content: bytes) -> tuple[int, int]:
    """Return width and height from a file's header, without the EXIF orientation; raises BadImageError."""
    with _bad_image_errors():
        return _open(content).size


@contextmanager
def _bad_image_errors() -> Iterator[None]:
    """Turn Pillow's exceptions into BadImageError with a reason."""
    try:
        with _NO_WARNINGS:
            yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"decompression bomb: {error}") from None
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise anything from OSError to IndexError)
        raise BadImageError(f"damaged: {error or type(error).__name__}") from None


def _open(content: bytes) -> Image.Image:
    """Read the header; raises BadImageError if it already rules the image out."""
    if not content:
        raise BadImageError("the file is empty")
    image = Image.open(io.BytesIO(content))
    if image.format == "EPS":
        raise BadImageError("a PostScript program, not an image")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(f"{image.width} x {image.height} pixels: longer than {MAX_ASPECT_RATIO} times its width")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: 16-bit grey is scaled, transparency is put on white.

    Raises BadImageError for floating-point or 32-bit pixels, whose range is unknown.
    """
    if image.mode in SIXTEEN_BIT_MODES:  # Pillow's own conversion clips them at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError(f"32-bit pixels from {values.min()} to {values.max()}: save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImageError("floating-point pixels: which value is white is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        # Pillow converts La, grey levels multiplied with alpha, to LA only.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
