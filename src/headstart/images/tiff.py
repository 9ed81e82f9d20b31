"""TIFF at its own depth, by tifffile: bands however they are laid out; pages, and axes of ImageJ and OME, as planes."""

import io
import logging
import math
import re
import struct
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.images.codestreams import jpeg, jpeg_2000, lerc
from headstart.images.decode import BadImageError
from headstart.images.kinds import tiff_preview
from headstart.images.stack import Stack, Values, depth_of, loaded

MOST_PAGES = 65_536
SPATIAL, BANDS = "YX", "CS"
KIND_OF_PAGE, ORIENTATION, NODATA, COLOURS = 254, 274, 42113, 320
MIN_IS_WHITE, PALETTE, CFA, YCBCR, CIELAB = 0, 3, 32803, 6, 8
NONE, JPEG, OLD_JPEG = 1, 7, 6
# Decoders that expand to what the strip's size allows; of others the code stream's own header is checked.
BOUNDED = {NONE, 2, 3, 4, 5, 8, 32946, 50013, 32773, 34925, 50000, 34926, 50001}
CODE_STREAMS = {JPEG: jpeg, **dict.fromkeys((33003, 33004, 33005, 34712), jpeg_2000), 34887: lerc}


def _load() -> ModuleType:
    import tifffile  # noqa: PLC0415  (an extra of its own)

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # of what is odd in a file; what matters is raised
    return tifffile


def open_tiff(content: bytes) -> Stack:
    """Read the header; raises BadImageError, and what tifffile raises for damaged files."""
    tifffile = loaded("TIFF", _load)
    count_pages(content)
    file = tifffile.TiffFile(io.BytesIO(content))
    series = _series(file)
    page = series.keyframe
    _check_page(page)
    axes = series.axes.upper()
    shape = dict(zip(range(len(axes)), series.shape, strict=True))
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise BadImageError(f"a TIFF with the axes {axes}: it needs one X and one Y")
    bands = [i for i, axis in enumerate(axes) if axis in BANDS]
    planes = [i for i, axis in enumerate(axes) if axis not in BANDS + SPATIAL]
    order = [*planes, axes.index("Y"), axes.index("X"), *bands]
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    count = int(np.prod([shape[i] for i in planes], dtype=object))
    channels = int(np.prod([shape[i] for i in bands], dtype=object))
    is_palette = page.photometric == PALETTE and COLOURS in page.tags
    orientation = _number(page, ORIENTATION, 1)
    depth = depth_of(np.dtype(np.uint16) if is_palette else np.dtype(series.dtype))
    size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)

    def read(wanted: int) -> Values:
        _check_strips(series, content)
        found = series.asarray(maxworkers=1)
        values = found.reshape(series.shape).transpose(order).reshape(count, height, width, channels)
        values = values[:wanted]
        invalid = _nodata(values, page)
        if is_palette:
            values = np.moveaxis(np.asarray(page.colormap)[:, values[..., 0]], 0, -1)
        if page.photometric == MIN_IS_WHITE and values.dtype.kind in "bu":
            values = (np.iinfo(values.dtype).max if values.dtype.kind == "u" else True) ^ values
        return Values(upright(values, orientation), None if invalid is None else upright(invalid, orientation))

    itemsize = np.dtype(series.dtype).itemsize
    return Stack(*size, 3 * channels if is_palette else channels, count, depth, itemsize, read)


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn planes, (planes, height, width, bands), by the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    return values


def count_pages(content: bytes) -> int:
    """Return the number of pages that are no reduced copies or masks, 1 at least.

    Raises BadImageError if their chain is a loop, leads out of the file, or is too long.
    """
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    count_format, offset_format, tag_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    count_size = struct.calcsize(order + count_format)
    seen, copies = set[int](), 0
    try:
        (at,) = struct.unpack_from(order + offset_format, content, 8 if big else 4)
        while at:
            if at in seen:
                raise BadImageError("damaged: its pages are in a loop")
            if len(seen) == MOST_PAGES:
                raise BadImageError(f"more than {MOST_PAGES:,} pages: save those that matter")
            seen.add(at)
            (tags,) = struct.unpack_from(order + count_format, content, at)
            # The first tag is the kind of page, where a page has that: a reduced copy, or a mask.
            first, kind = struct.unpack_from(f"{order}H{'10x' if big else '6x'}I", content, at + count_size)
            copies += first == KIND_OF_PAGE and bool(kind & 5)
            (at,) = struct.unpack_from(order + offset_format, content, at + count_size + tags * tag_size)
    except struct.error:
        raise BadImageError(f"damaged: page {len(seen) or 1} leads out of the file") from None
    if not seen:
        raise BadImageError("damaged: a TIFF without a page")
    return max(len(seen) - copies, 1)


def _series(file: Any) -> Any:
    """Return the first image that is no reduced copy of another one, all its planes; raises BadImageError."""
    if preview := tiff_preview({tag.code: tag.value for tag in file.pages[0].tags}):
        raise BadImageError(preview)
    sizes = [[int(size[:9]) for size in re.findall(rf'Size{axis}="(\d+)"', file.ome_metadata or "")] for axis in "CTZ"]
    if math.prod(max(size, default=1) for size in sizes) > MOST_PAGES:
        raise BadImageError(f"OME metadata of more than {MOST_PAGES:,} planes: save those that matter")
    series = file.series[0]
    said, found = (file.imagej_metadata or {}).get("images", 1), series.size // max(series.keyframe.size, 1)
    if said not in {found, 1}:
        raise BadImageError(f"damaged: ImageJ wrote {said} images, and {found} are there")
    if any(page is None for page in series.pages):
        raise BadImageError("an OME-TIFF with planes in other files: save it as one file")
    return series


def _check_page(page: Any) -> None:
    """Raise BadImageError for pixels that mean something else than values of bands."""
    if page.photometric in (CFA, CIELAB) or (page.photometric == YCBCR and page.compression not in (JPEG, OLD_JPEG)):
        raise BadImageError(f"a TIFF of {page.photometric.name} pixels: save it as grey or RGB")
    is_unpredicted = page.predictor == 1 or page.compression not in CODE_STREAMS  # which may give other bytes each time
    if not is_unpredicted or page.compression not in BOUNDED | CODE_STREAMS.keys():
        name = getattr(page.compression, "name", page.compression)
        raise BadImageError(f"a TIFF compressed by {name}: save it with LZW, Deflate, Zstandard or uncompressed")


def _check_strips(series: Any, content: bytes) -> None:
    """Raise BadImageError for strips or tiles beyond the end of the file, or that hold more or less than they should.

    Where images of other formats are in them, their decoders believe what these say of their size.
    """
    keyframe, size = series.keyframe, len(content)
    largest = (
        (keyframe.tilewidth, keyframe.tilelength) if keyframe.is_tiled else (keyframe.imagewidth, keyframe.rowsperstrip)
    )
    offset = series.dataoffset  # of planes that follow each other without a page for each
    if offset is not None and keyframe.compression == NONE and offset + series.nbytes > size:
        raise BadImageError("damaged: cut, or pixels beyond the end of the file")
    for page in series.pages:
        parts = [part for part in zip(page.dataoffsets, page.databytecounts, strict=False) if all(part)]
        if not page.dataoffsets or any(start + length > size for start, length in parts):
            raise BadImageError("damaged: cut, or pixels beyond the end of the file")
        if not parts:
            raise BadImageError("damaged: no pixels")
        for start, length in parts if keyframe.compression in CODE_STREAMS else []:
            stream = CODE_STREAMS[keyframe.compression](content[start : start + length])
            if stream.width > largest[0] or stream.height > largest[1] or len(stream.bits) > keyframe.samplesperpixel:
                raise BadImageError("damaged: a tile or strip with an image larger than itself")
        if keyframe.compression == NONE and len(parts) == len(page.dataoffsets):  # GDAL leaves out empty ones
            stored = sum(length for _, length in parts)
            bits = int(keyframe.bitspersample) if isinstance(keyframe.bitspersample, int) else 8
            if stored < keyframe.size * bits // 8 and not keyframe.is_subsampled:
                raise BadImageError("damaged: fewer bytes than pixels")


def _nodata(values: NDArray[Any], page: Any) -> NDArray[np.bool_] | None:
    """Return where values are GDAL's mark of no data; None where there are none."""
    if NODATA not in page.tags:
        return None
    try:
        mark = float(str(page.tags[NODATA].value).strip().rstrip("\0"))
    except ValueError:
        return None
    invalid = np.isnan(values) if np.isnan(mark) and values.dtype.kind == "f" else values == mark
    if values.dtype == np.float32 and np.isfinite(mark) and abs(mark) <= np.finfo(np.float32).max:
        invalid = values == np.float32(mark)  # written with fewer digits, as -3.4028234e+38
    return invalid if invalid.any() else None


def _number(page: Any, tag: int, default: int) -> int:
    value = page.tags[tag].value if tag in page.tags else default
    return value if isinstance(value, int) else default
