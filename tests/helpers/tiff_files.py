"""TIFFs of all kinds that tifffile writes, and what becomes of each.

``cd tests && python -m helpers.tiff_files`` prints docs/instruments.md's table.
"""

import io
import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile

from headstart.images.arrays import read_array
from headstart.images.decode import BadImageError
from helpers.hostile_arrays import noise, tiff

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64", "complex64")
COMPRESSIONS = (
    *(None, "packbits", "zlib", "lzw", "zstd", "lzma", "lerc", "jpeg2000"),
    *("jpeg", "webp", "png", "jpegxl", "jpegxr"),
)
BANDS: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((20, 30), {}),
    ((20, 30, 3), {"photometric": "rgb"}),
    ((3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}),
    ((20, 30, 13), {"photometric": "minisblack", "planarconfig": "contig"}),
    ((13, 20, 30), {"photometric": "minisblack", "planarconfig": "separate"}),
)


def tiff_files(compression: str | None) -> Iterator[tuple[str, bytes, np.ndarray[Any, Any]]]:
    """Yield type, content and tifffile's values, (height, width, bands), of each variant that tifffile can write."""
    predictors = (None, True) if compression in {"zlib", "lzw", "zstd"} else (None,)
    ways = itertools.product(DTYPES, BANDS, (None, (16, 16)), (False, True), "<>", predictors)
    for dtype, (shape, bands), tile, big, order, predictor in ways:
        how = bands | {"tile": tile, "bigtiff": big, "byteorder": order, "predictor": predictor}
        try:
            content = tiff(noise(*shape, dtype=dtype), compression=compression, **how)
            expected = tifffile.imread(io.BytesIO(content))
        except Exception:  # noqa: BLE001, S112  (the type can't be compressed so)
            continue
        if expected.ndim == 2:
            expected = expected[..., None]
        elif bands.get("planarconfig") == "separate":
            expected = np.moveaxis(expected, 0, -1)
        yield dtype, content, expected


def table() -> str:
    """Return the table by compression, in Markdown."""
    lines = ["| compression | files | read, with tifffile's values | refused |", "|---|---|---|---|"]
    for compression in COMPRESSIONS:
        read, reasons, total = 0, defaultdict[str, set[str]](set), Counter[str]()
        for dtype, content, expected in tiff_files(compression):
            total[dtype] += 1
            try:
                pixels = read_array(content).pixels
            except BadImageError as error:
                reasons[str(error).partition(":")[0]].add(dtype)
                continue
            assert compression in ("jpeg", "webp") or np.array_equal(pixels, expected.astype(pixels.dtype))
            read += 1
        said = "; ".join(f"{reason} ({', '.join(sorted(dtypes))})" for reason, dtypes in reasons.items())
        lines.append(f"| {compression or 'none'} | {total.total()} | {read} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table())
