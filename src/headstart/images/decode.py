"""Decoding: from a file's bytes to upright RGB pixels, with Pillow and numpy only (HEIC: with pillow-heif)."""

import io
import math
import shlex
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from headstart.core.errors import requirement
from headstart.images.kinds import HEAD_BYTES, HEIC, describe_tiff, image_format, recognise, tiff_preview

MAX_ASPECT_RATIO = 20
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
PADDED_FORMATS = ("BMP", "DIB", "TGA")
"""Formats whose fourth byte is often padding: where it is 0 everywhere, nothing is transparent."""
FEW_BITS = 14
"""Of 16: an image whose values need no more is at most a quarter as bright as it could be."""
MASK_SHARE = 0.25
"""The commonest value of a mask beside 0 is at least this share of its values beside 0, in 98 % of 4,861 icons."""
MASK_TRACE = 32
"""A mask that has no more than this of 255 anywhere shows nothing; it is what 12 bits of infrared in 16 become."""
MASK_STEP = 2.0
"""Mean difference of neighbouring values below which a band is a smooth gradient, as a soft mask may be, and colours
under transparency are one."""
NOTE = "headstart_note"
"""The key of an image's ``info`` under which ``decode`` leaves a ``Note``."""


class BadImageError(Exception):
    """A file is not a usable image; the message is the reason."""


@dataclass(frozen=True)
class ImageLimits:
    """What is decoded: anything beyond is a bad image.

    Attributes:
        max_pixels: the most pixels; None for Pillow's own limit, 178,956,970.
        max_aspect_ratio: the longest side over the shortest. A longer strip would be stored far larger than the square
            that a model sees of it.
        heic: whether HEIC is read, where pillow-heif is installed.
    """

    max_pixels: int | None = None
    max_aspect_ratio: float = MAX_ASPECT_RATIO
    heic: bool = True

    @property
    def most_pixels(self) -> int:
        """The most pixels as a number."""
        return 2 * (Image.MAX_IMAGE_PIXELS or 2**62) if self.max_pixels is None else self.max_pixels

    def check(self, width: int, height: int) -> None:
        """Raise BadImageError for an image of more pixels, or a narrower one."""
        if width * height > self.most_pixels:
            raise BadImageError(too_large(f"{width} x {height} pixels are more than {self.most_pixels}"))
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise BadImageError(
                f"{width} x {height} pixels: longer than {self.max_aspect_ratio:g} times its width: if that is right, "
                "raise prepare.max_aspect_ratio, for predict and serve --max-aspect-ratio"
            )


DEFAULT_LIMITS = ImageLimits()
UNLIMITED = ImageLimits(2**62, math.inf)
"""For files that ``prepare`` has accepted."""


class Note(NamedTuple):
    """What an image's owner should know of it, though it is used: the problem's name, and the value that shows it."""

    problem: str
    value: str


class _PillowSettings:
    """Pillow's settings, which are the whole process's, while any thread decodes.

    Warnings are ignored: Pillow warns about images that it still reads, with unusual metadata or many pixels, and
    ``warnings.catch_warnings`` alone is not thread-safe. Its limit of pixels is raised to the highest that any of these
    threads allows, and never lowered, for ``ImageLimits.check`` has the exact one.
    """

    def __init__(self) -> None:
        self._lock, self._limits, self._caught = threading.Lock(), Counter[int](), ExitStack()
        self._before: int | None = None

    @contextmanager
    def __call__(self, max_pixels: int | None) -> Iterator[None]:
        limit = -(-(max_pixels or 0) // 2)  # Pillow refuses twice its limit
        with self._lock:
            if not self._limits:
                self._caught.enter_context(warnings.catch_warnings(action="ignore"))
                self._before = Image.MAX_IMAGE_PIXELS
            self._limits[limit] += 1
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._limits[limit] -= 1
                self._limits = +self._limits
                self._set()
                if not self._limits:
                    self._caught.close()

    def _set(self) -> None:
        if self._before is not None:
            Image.MAX_IMAGE_PIXELS = max(self._before, *self._limits, 0)


_PILLOW_SETTINGS = _PillowSettings()


def decode(content: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a file's first frame to RGB, upright by its EXIF orientation; thread-safe; raises BadImageError.

    What should be said of its pixels is in its ``info``, as the ``Note`` of the key ``NOTE``.
    """
    with bad_image_errors(content, limits):
        image = open_image(content, limits)
        deep = is_deep(image)
        image.load()
        note = _note(image, deep=deep)
        ImageOps.exif_transpose(image, in_place=True)
        rgb = to_rgb(image)
    if note:
        rgb.info[NOTE] = note
    return rgb


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened to RGB, upright by its EXIF orientation; raises BadImageError."""
    with bad_image_errors(b"", DEFAULT_LIMITS):
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def header_size(content: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return width and height from a file's header, without the EXIF orientation; raises BadImageError."""
    with bad_image_errors(content, limits):
        return open_image(content, limits).size


def too_large(what: str) -> str:
    """Return the reason of an image that is too large, with what to do."""
    return f"{what}: a decompression bomb, or raise prepare.max_pixels, for predict and serve --max-pixels"


@contextmanager
def bad_image_errors(content: bytes, limits: ImageLimits) -> Iterator[None]:
    """Turn Pillow's exceptions into BadImageError with a reason."""
    try:
        with _PILLOW_SETTINGS(limits.max_pixels):
            yield
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(too_large(str(error).partition(", could be")[0])) from None
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise anything from OSError to IndexError)
        raise BadImageError(_reason(content, error)) from None


def _reason(content: bytes, error: Exception) -> str:
    """Return why Pillow could not read a file."""
    kind = recognise(content)
    if kind and kind is not HEIC:
        return str(kind)
    tiff = describe_tiff(content)
    if kind or not isinstance(error, UnidentifiedImageError):
        said = " ".join(str(error).split()) or type(error).__name__  # libheif's messages have several lines
        return f"damaged: {said}{f' ({tiff})' if tiff else ''}"
    unreadable = "not an image that Pillow can read"
    if tiff and tiff.startswith("camera raw"):
        return tiff
    if tiff:
        return f"{tiff}, {unreadable}: prepare.channels: auto keeps its bands, or save grey or RGB in 8 bits"
    name = image_format(content[:HEAD_BYTES])
    return f"{name}, but {unreadable}: damaged, or a rare variant" if name else unreadable


def open_image(content: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Read the header; raises BadImageError if it already rules the image out."""
    if not content:
        raise BadImageError("the file is empty")
    is_heic = content[4:8] == b"ftyp" and recognise(content) is HEIC
    image = _open_heic(content, limits) if is_heic else Image.open(io.BytesIO(content))
    if image.format == "EPS":
        raise BadImageError("a PostScript program, not an image")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if problem := tiff_preview(tags):
            raise BadImageError(problem)
        if tags.get(339, (1,))[0] == 2 and tags.get(258, (1,))[0] == 8:
            raise BadImageError("signed 8-bit values, which Pillow reads as unsigned: add 128 and save it unsigned")
        if tags.get(284) == 2 and max(tags.get(258, (1,))) > 8:
            raise BadImageError("16-bit bands one after the other, which Pillow misreads: save its pixels interleaved")
    limits.check(*image.size)
    return image


def _open_heic(content: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Open HEIC, upright already: libheif turns it, and pillow-heif takes the orientation out of the EXIF data."""
    if not limits.heic:
        raise BadImageError("HEIC, which is not decoded here: convert it to JPEG, or start the service with --heic")
    try:
        from pillow_heif.as_plugin import HeifImageFile  # noqa: PLC0415  (an extra of its own)
    except ImportError:
        needed = shlex.quote(requirement("heic"))
        raise BadImageError(f"HEIC: `pip install {needed}` reads it, or convert it to JPEG") from None
    image: ImageFile.ImageFile = HeifImageFile(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return image


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image's band has 16 bits, of which Pillow keeps 8 where there are several bands."""
    return bool(image.tile) and any(way in str(image.tile[0][3]) for way in (";16", ", 65535"))


def _note(image: Image.Image, *, deep: bool) -> Note | None:
    """Look at an opened image's values; ``deep``: each band had 16 bits. Raises BadImageError for a wrong last band."""
    bands, tags = image.getbands(), getattr(image, "tag_v2", {})
    if bands[-1] == "A" and not is_mask(image):
        if tags:
            raise BadImageError(
                "its last band is no transparency, though the file says or implies it (infrared?): save the bands that "
                "the model is to see as grey or RGB; or as PNG, where a last band is transparency by definition"
            )
        return Note("odd_transparency", "not a mask's values")
    if image.mode in SIXTEEN_BIT_MODES:
        highest = int(np.asarray(image).max())
    else:
        ends = [image.getchannel(band).getextrema()[1] for band in bands if deep and band != "A"]
        highest = 256 * int(np.max(ends)) + 255 if ends else 0
    if 0 < highest < 2**FEW_BITS:
        return Note("few_bits", f"{highest.bit_length()} of 16")
    if tags.get(277, 1) > len(bands):
        return Note("unused_bands", f"{tags[277] - len(bands)} of {tags[277]}")
    return None


def is_mask(image: Image.Image) -> bool:
    """Whether an image's last band may be transparency: large areas of one value, or smooth, or it hides nothing."""
    band = image.getchannel("A")
    counts, values = band.histogram(), np.asarray(band)
    visible = sum(counts[1:])
    if visible and not any(counts[MASK_TRACE:]):
        return False
    commonest = max(counts[1:])
    if commonest >= MASK_SHARE * visible or _mean_step(values, values > 0) < MASK_STEP:
        return True
    # Under a mask's zeros there is commonly one colour; under another band's, the photograph goes on.
    hidden = _mean_step(np.asarray(image.convert("L")), values == 0)
    return counts[0] + commonest >= MASK_SHARE * values.size and hidden < MASK_STEP


def _mean_step(values: NDArray[np.uint8], inside: NDArray[np.bool_]) -> float:
    """Return the mean difference of values, (height, width), whose neighbour is ``inside`` as they are; 0 for none."""
    steps = np.abs(np.diff(values.astype(np.int16), axis=0))[inside[1:] & inside[:-1]]
    across = np.abs(np.diff(values.astype(np.int16), axis=1))[inside[:, 1:] & inside[:, :-1]]
    steps = np.concatenate([steps, across])
    return float(steps.mean()) if steps.size else 0.0


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: 16-bit grey is scaled, transparency is put on white.

    Raises BadImageError for floating-point or 32-bit pixels, whose range is unknown.
    """
    if image.mode in SIXTEEN_BIT_MODES:  # Pillow's own conversion clips them at 255
        values = np.asarray(image).astype(np.int64)
        tags = getattr(image, "tag_v2", {})
        bits, signed = tags.get(258, (32,))[0], not tags or tags.get(339, (1,))[0] == 2
        if bits == 32 and not signed:
            values &= 0xFFFFFFFF  # Pillow reads them as signed
        if values.min() < 0 or values.max() > 65535:
            kind = f"{'signed' if signed else 'unsigned'} {bits}-bit" if tags else "32-bit"
            raise BadImageError(
                f"{kind} pixels from {values.min()} to {values.max()}: save the range that matters with 8 or 16 "
                "unsigned bits"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        finite = values[np.isfinite(values)]
        found = f"from {finite.min():g} to {finite.max():g}" if finite.size else "without a finite one"
        raise BadImageError(
            f"floating-point pixels {found}: which value is white is unknown; save it with 8 or 16 bits"
        )
    if image.format in PADDED_FORMATS and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    if image.has_transparency_data:
        # Pillow converts La, grey levels multiplied with alpha, to LA only.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
