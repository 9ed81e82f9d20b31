"""pydicom's own test files, as they are installed with it, and what becomes of each.

``cd tests && python -m helpers.dicom_files`` prints docs/instruments.md's table.
"""

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from headstart.images.arrays import describe_array, read_array
from headstart.images.bands import PixelLayout
from headstart.images.decode import BadImageError

NO_DICOM = (".txt", ".json", ".gz", ".icc", ".dump")


def dicom_files() -> list[Path]:
    """Return the paths of the files that are DICOM, sorted."""
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("README"))
    return sorted(path for path in files if path.suffix not in NO_DICOM)


def read_or_reason(path: Path) -> tuple[str, np.ndarray[Any, Any] | None]:
    """Return "read: " and how, and the pixels of the first frame; or the reason, and None."""
    content = path.read_bytes()
    try:
        info = describe_array(content)
        layout = PixelLayout(info.channels, info.dtype, "first") if info.planes > 1 else None
        pixels = read_array(content, layout).pixels
    except BadImageError as error:
        return str(error), None
    return "read: " + str(pixels.dtype), pixels


def transfer_syntax(path: Path) -> str:
    """Return the name of what the pixels are written with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()), force=True, stop_before_pixels=True)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    return str(syntax.name).partition(",")[0].partition(" (Process")[0] if syntax else "not said"


def table() -> str:
    """Return the table by transfer syntax, in Markdown."""
    counts = Counter[tuple[str, str]]()
    for path in dicom_files():
        how, pixels = read_or_reason(path)
        reason = how.partition(",")[0].partition(" (")[0]
        counts[transfer_syntax(path), "read" if pixels is not None else reason] += 1
    lines = ["| transfer syntax | files | what becomes of them |", "|---|---|---|"]
    return "\n".join(lines + [f"| {syntax} | {count} | {how} |" for (syntax, how), count in sorted(counts.items())])


if __name__ == "__main__":
    print(table())
