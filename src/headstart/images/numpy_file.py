"""NumPy's own files, .npy and .npz, never unpickled."""

import io
import math
import zipfile
from typing import Any

import numpy as np

from headstart.images.bands import MAX_BANDS
from headstart.images.decode import BadImageError
from headstart.images.stack import Stack, Values, depth_of

SUFFIX = ".npy"


def open_npy(content: bytes) -> Stack:
    """Read an array's header; raises BadImageError, and ValueError for damaged files."""
    return _stack(io.BytesIO(content))


def open_npz(content: bytes) -> Stack:
    """Read the header of the one array of an archive; raises BadImageError, and what zipfile raises."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    if len(names) != 1 or not names[0].endswith(SUFFIX):
        raise BadImageError(f"a .npz of {len(names):,} arrays: save the image alone, as .npy or as the only array")
    return _stack(archive.open(names[0]))


def _stack(file: Any) -> Stack:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for names of fields that are no ASCII
        raise BadImageError(f"a NumPy array of format {version[0]}.{version[1]}, with fields: save plain numbers")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise BadImageError("a NumPy array of Python objects, which could be a program: save plain numbers")
    height, width, channels = sizes = _sizes(shape)

    def read(_: int) -> Values:
        size = math.prod(shape) * dtype.itemsize
        stored = file.read(size)
        if len(stored) < size:
            raise BadImageError(f"damaged: {len(stored):,} of {size:,} bytes")
        values = np.frombuffer(stored, dtype).reshape(shape[::-1] if is_fortran else shape)
        values = values.T if is_fortran else values
        if len(shape) == 3 and shape != sizes:
            values = np.moveaxis(values, 0, 2)
        return Values(values.reshape(1, height, width, channels))

    return Stack(width, height, channels, 1, depth_of(dtype), dtype.itemsize, read)


def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and bands of an array; raises BadImageError unless one reading alone makes sense."""
    match shape:
        case (height, width) if height > 0 and width > 0:
            return height, width, 1
        case (height, width, bands) if 0 < bands <= MAX_BANDS and bands < min(height, width):
            return height, width, bands
        case (bands, height, width) if 0 < bands <= MAX_BANDS and bands < min(height, width):
            return height, width, bands
    raise BadImageError(
        f"an array of shape {shape}: save it as (height, width), (height, width, bands) or (bands, height, width), "
        f"with 1 to {MAX_BANDS} bands, fewer than height and width"
    )
