"""Images as instruments make them: any readable file's pixels at their own depth, (height, width, bands), upright.

Pillow reads 8-bit images in full; TIFF, DICOM, NumPy's files, and deeper PNG, JPEG 2000 and PNM have readers of their
own, of the extra ``instruments`` where a library is needed.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, ImageOps

from headstart.images.bands import DEPTHS, MAX_BANDS, Depth, PixelLayout, Pixels, Planes
from headstart.images.codestreams import jpeg_2000
from headstart.images.decode import (
    DEFAULT_LIMITS,
    BadImageError,
    ImageLimits,
    Note,
    bad_image_errors,
    is_deep,
    is_mask,
    open_image,
    to_rgb,
)
from headstart.images.dicom import open_dicom
from headstart.images.kinds import HEAD_BYTES, recognise
from headstart.images.numpy_file import open_npy, open_npz
from headstart.images.stack import Stack, Values, as_depth, damaged, depth_of, loaded, only_whole
from headstart.images.tiff import count_pages, open_tiff, upright

Content = bytes | Sequence[bytes]
"""A file's bytes, or those of several files with an image's bands."""
ORIENTATION, WEBP = 274, 50001
# Of 16 bits: a largest value with more than two digits but those up to 255.
PNM = re.compile(rb"P[56](?:(?:\s|#[^\n]*\n)+\d+){2}(?:\s|#[^\n]*\n)+(?!(?:1?\d?\d|2[0-4]\d|25[0-5])\s)\d+\s")
FLOAT_SHARE = 0.01
"""So many of a set being floating-point are no strays: of CT, a scanner whose slope is no whole number."""
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PLAIN_BANDS = {"1": 1, "L": 1, "LA": 2, "La": 2, "RGB": 3, "RGBA": 4, "RGBa": 4}
PLAIN_MODES = {*PLAIN_BANDS, "P", "PA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
OPENERS: dict[str, Callable[[bytes], Stack]] = {
    "DICOM": open_dicom,
    "NumPy array": open_npy,
    "NumPy archive": open_npz,
}


class ArrayImage(NamedTuple):
    """An image's pixels, and what its owner should know of them."""

    pixels: Pixels
    note: Note | None = None


class ArrayInfo(NamedTuple):
    """What an image is, before any conversion.

    ``width`` and ``height`` are upright; ``channels`` are a plane's. ``plain``: Pillow shows it in full, with 8 bits.
    """

    width: int
    height: int
    channels: int
    dtype: Depth
    planes: int
    plain: bool


def describe_array(content: Content, limits: ImageLimits = DEFAULT_LIMITS) -> ArrayInfo:
    """Return what an image is, from its header where that tells; raises BadImageError."""
    if not isinstance(content, bytes):
        return _joined([describe_array(each, limits) for each in content])
    with bad_image_errors(content, limits):
        opened = _open(content, limits)
        if isinstance(opened, Stack):
            opened.check(limits)
            return ArrayInfo(opened.width, opened.height, opened.channels, opened.dtype, opened.planes, plain=False)
        turned = opened.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = opened.size[::-1] if turned else opened.size
        return ArrayInfo(width, height, PLAIN_BANDS.get(opened.mode, 3), "uint8", 1, plain=True)


def choose_layout(
    infos: Sequence[ArrayInfo], wanted: Literal["auto"] | int = "auto", planes: Planes | None = None
) -> PixelLayout | None:
    """Return the layout of a set of images, None for RGB: by ``prepare.channels`` and ``prepare.planes``.

    ``auto`` is RGB where more than half are plain, else what most of the others are; a number takes the depth that most
    images with so many bands have, or most of all. Where some are floating-point, which holds the integers too, it is
    that.
    """
    if wanted == "auto" and 2 * sum(info.plain for info in infos) > len(infos):
        return None
    counts = Counter((_bands_of(info, planes), info.dtype) for info in infos if not (info.plain and wanted == "auto"))
    fitting = Counter({key: count for key, count in counts.items() if wanted in ("auto", key[0])}) or counts
    if not fitting:
        return None if wanted == "auto" else PixelLayout(wanted, "uint8")
    channels, dtype = max(fitting, key=lambda key: (fitting[key], key[0], DEPTHS.index(key[1])))
    same = sum(count for key, count in fitting.items() if key[0] == channels)
    if dtype != "uint8" and fitting[channels, "float32"] >= FLOAT_SHARE * same:
        dtype = "float32"
    is_stack = any(info.planes > 1 for info in infos)
    return PixelLayout(channels if wanted == "auto" else wanted, dtype, planes if is_stack else None)


def read_array(content: Content, layout: PixelLayout | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> ArrayImage:
    """Return an image's pixels at their own depth, or, with a layout, at its; raises BadImageError where they differ.

    Of several files the bands follow each other. Without a layout a stack is refused. What is no number, and what the
    file marks as no data, becomes the band's least valid value; the note says so.
    """
    if isinstance(content, bytes):
        with bad_image_errors(content, limits):
            image = _read(content, layout, limits)
    else:
        # Each of the files has some of the layout's bands.
        part = layout and PixelLayout(0, layout.dtype, layout.planes)
        parts = []
        for each in content:
            with bad_image_errors(each, limits):
                parts.append(_read(each, part, limits))
        _check_sizes([(each.pixels.shape[1], each.pixels.shape[0]) for each in parts])
        kind = np.dtype(_common([depth_of(each.pixels.dtype) for each in parts]))
        pixels = np.concatenate([each.pixels.astype(kind) for each in parts], axis=2)
        image = ArrayImage(pixels, next((each.note for each in parts if each.note), None))
    pixels = fitted(image.pixels, layout) if layout else image.pixels
    return ArrayImage(np.ascontiguousarray(pixels), image.note)


def _bands_of(info: ArrayInfo, planes: Planes | None) -> int:
    return info.channels * (info.planes if planes == "channels" else 1)


def _joined(parts: Sequence[ArrayInfo]) -> ArrayInfo:
    """Return what the files of one image are together; raises BadImageError unless they are of one size."""
    _check_sizes([(part.width, part.height) for part in parts])
    planes = {part.planes for part in parts}
    if len(planes) > 1:
        raise BadImageError(f"its files have {' and '.join(map(str, sorted(planes)))} planes")
    channels, dtype = sum(part.channels for part in parts), _common([part.dtype for part in parts])
    return ArrayInfo(parts[0].width, parts[0].height, channels, dtype, parts[0].planes, plain=False)


def _check_sizes(sizes: Sequence[tuple[int, ...]]) -> None:
    if other := next((size for size in sizes if size != sizes[0]), None):
        (width, height), place = sizes[0], list(sizes).index(other) + 1
        raise BadImageError(
            f"its bands differ in size: {width} x {height} pixels in the first file, {other[0]} x {other[1]} in that "
            f"of band {place}: resample them to one grid"
        )


def _common(depths: Sequence[Depth]) -> Depth:
    """Return the smallest depth that holds the values of all."""
    kind = np.result_type(*map(np.dtype, depths))
    return next((each for each in DEPTHS if np.dtype(each) == kind), "float32")


def _open(content: bytes, limits: ImageLimits) -> Stack | ImageFile.ImageFile:
    """Open a file: a plain one with Pillow. Raises BadImageError, and what the readers raise for damaged files."""
    kind = recognise(content[:HEAD_BYTES])
    if kind and (opener := OPENERS.get(kind.name)):
        with damaged():
            return opener(content)
    if content.startswith(TIFF_STARTS):
        logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # of what only tifffile reads
        with contextlib.suppress(Exception):  # what Pillow can't read, tifffile may
            if count_pages(content) == 1 and is_plain(image := open_image(content, limits)):
                return image
        with damaged():
            return open_tiff(content)
    image = open_image(content, limits)
    bits = jpeg_2000(content).bits if image.format == "JPEG2000" else ()
    if is_plain(image) and set(bits) <= {8} and not (image.format == "PPM" and PNM.match(content)):
        return image
    return _open_deep(image, content, bits)


def is_plain(image: ImageFile.ImageFile) -> bool:
    """Return whether Pillow shows an opened image in full, with 8 bits; of a TIFF with a fourth band it reads it."""
    tags = getattr(image, "tag_v2", {})
    if image.mode not in PLAIN_MODES or is_deep(image) or tags.get(277, 1) > len(image.getbands()):
        return False
    if tags.get(259) == WEBP:  # Pillow opens it, and its libtiff has no decoder
        return False
    if tags and image.getbands()[-1] == "A":
        image.load()
        return is_mask(image)
    return True


def _open_deep(image: ImageFile.ImageFile, content: bytes, bits: tuple[int, ...]) -> Stack:
    """Return what Pillow would read with less than its depth, by its format; raises BadImageError for rare ones."""
    orientation = image.getexif().get(ORIENTATION, 1)
    decode: Callable[[], NDArray[Any]]
    match image.format, image.mode:
        case ("PNG", "I;16") | ("PPM", "F"):
            channels, depth, decode = (
                1,
                depth_of(np.dtype("u2" if image.mode == "I;16" else "f4")),
                lambda: np.asarray(image),
            )
        case ("PNG", _):
            channels, depth = {2: 3, 4: 2, 6: 4}[content[25]], "uint16"  # the header's colour type
            decode = partial(_imagecodecs("PNG of 16 bits").png_decode, content)
        case ("PPM", _) if PNM.match(content):
            channels, depth, decode = len(image.getbands()), "uint16", partial(_pnm, content)
        case ("JPEG2000", _) if max(map(abs, bits)) <= 16:
            channels = len(bits)
            depth = "int16" if min(bits) < 0 else "uint8" if max(bits) <= 8 else "uint16"
            decode = partial(_imagecodecs("JPEG 2000 of more than 8 bits").jpeg2k_decode, content)
        case _:
            raise BadImageError(f"{image.format} with more than 8 bits: save it as TIFF or PNG")
    width, height = image.size

    def read(_: int) -> Values:
        with damaged():
            values = decode().reshape(1, height, width, channels)
        return Values(upright(values, orientation))

    size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    return Stack(*size, channels, 1, depth, np.dtype(depth).itemsize, read)


def _imagecodecs(name: str) -> ModuleType:
    def load() -> ModuleType:
        import imagecodecs  # noqa: PLC0415  (an extra of its own)

        return imagecodecs

    return loaded(name, load)


def _pnm(content: bytes) -> NDArray[np.uint16]:
    """Return a PGM's or PPM's values, which Pillow would stretch to 16 bits."""
    header = PNM.match(content)
    assert header
    return np.frombuffer(content, ">u2", offset=header.end()).astype(np.uint16)


def _read(content: bytes, layout: PixelLayout | None, limits: ImageLimits) -> ArrayImage:
    """Return one file's pixels: of a stack as the layout's planes want them, of a plain one as its bands."""
    opened = _open(content, limits)
    if not isinstance(opened, Stack):
        return ArrayImage(_plain_pixels(opened, layout.channels if layout else 0))
    opened.check(limits)
    planes = layout.planes if layout else None
    if opened.planes > 1 and planes is None:
        raise BadImageError(
            f"a stack of {opened.planes:,} planes: set prepare.planes to first, max, mean or channels (a band for each)"
        )
    if planes == "channels" and opened.planes * opened.channels > MAX_BANDS:
        raise BadImageError(f"{opened.planes:,} planes of {opened.channels} bands: {MAX_BANDS} bands are the most")
    with damaged():
        values, invalid = opened.read(1 if planes == "first" else opened.planes)
        invalid = _with_no_number(values, invalid)
        depth = depth_of(values.dtype)
        share = 0.0 if invalid is None else float(invalid.mean())
        values, invalid = _one_plane(values, invalid, planes)
        pixels = as_depth(_filled(values, invalid), depth)
    return ArrayImage(pixels, Note("no_data", f"{share:.3%} of its values") if share else None)


def _plain_pixels(image: ImageFile.ImageFile, channels: int) -> Pixels:
    """Return an image that Pillow shows in full: in 1 or 3 bands if that many are wanted, else in those of its file."""
    image.load()
    upright_image = ImageOps.exif_transpose(image)
    if channels in (1, 3):
        rgb = np.asarray(to_rgb(upright_image))
        is_grey = channels == 1 and bool((rgb == rgb[..., :1]).all())
        return rgb[..., :1] if is_grey else rgb
    mode = upright_image.mode
    wanted = {"1": "L", "La": "LA", "RGBa": "RGBA"}.get(mode, mode if mode in PLAIN_BANDS else "RGB")
    pixels = np.asarray(upright_image.convert(wanted))
    return pixels.reshape(*pixels.shape[:2], -1)


def _with_no_number(values: NDArray[Any], invalid: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which values are marked as no data or no finite numbers; None where all are valid."""
    if values.dtype.kind == "f":
        endless: NDArray[np.bool_] = ~np.isfinite(values)
        if endless.any():
            return endless if invalid is None else invalid | endless
    return invalid if invalid is not None and invalid.any() else None


def _one_plane(
    values: NDArray[Any], invalid: NDArray[np.bool_] | None, planes: Planes | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Make one image (height, width, bands) of planes (planes, height, width, bands)."""
    count, height, width, channels = values.shape
    if planes == "channels":
        joined = np.moveaxis(values, 0, 2).reshape(height, width, count * channels)
        if invalid is not None:
            invalid = np.moveaxis(invalid, 0, 2).reshape(joined.shape)
        return joined, invalid
    if count == 1:
        return values[0], None if invalid is None else invalid[0]
    masked = values if invalid is None else np.ma.array(values, mask=invalid)
    reduced = masked.max(axis=0) if planes == "max" else masked.mean(axis=0, dtype=np.float64)
    if planes == "mean" and values.dtype.kind != "f":
        reduced = reduced.round()
    missing = None if invalid is None else np.ma.getmaskarray(reduced)
    return np.ma.getdata(reduced).astype(values.dtype), missing


def _filled(values: NDArray[Any], invalid: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return (height, width, bands) with each band's least valid value where a value is none; BadImageError if all."""
    if invalid is None or not invalid.any():
        return values
    values = values.copy()
    for band in range(values.shape[2]):
        missing = invalid[..., band]
        if missing.all():
            which = f"band {band + 1} of {values.shape[2]} has" if values.shape[2] > 1 else "it has"
            raise BadImageError(f"{which} no valid value, only no data: leave it out")
        values[..., band][missing] = values[..., band][~missing].min()
    return values


def fitted(pixels: Pixels, layout: PixelLayout) -> Pixels:
    """Return pixels in a set's layout; raises BadImageError where that would change them.

    8 bits are never mixed with more: what 255 means would be unknown.
    """
    has = PixelLayout(pixels.shape[2], depth_of(pixels.dtype), layout.planes)
    depths = {has.dtype, layout.dtype}
    if has.channels == layout.channels and (len(depths) == 1 or "uint8" not in depths):
        if layout.dtype in {"float32", has.dtype}:
            return pixels.astype(layout.dtype, copy=False)
        if only_whole(pixels, layout.dtype):
            return pixels.astype(layout.dtype)
        raise BadImageError(f"has values from {pixels.min()} to {pixels.max()} where the others have {layout.dtype}")
    raise BadImageError(f"has {has} where the others have {layout.channels} of {layout.dtype}")
