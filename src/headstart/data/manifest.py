"""The manifest: what is known of each image, a row for each, in the order of their names in the source.

It is a Parquet file with typed columns, written and read some thousand rows at a time. Beside that of a small data set
lies ``manifest.csv``, for people and their tools.
"""

import csv
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import first_line
from headstart.core.io import existing, table_rows
from headstart.core.paths import PREPARED
from headstart.core.storage import storage_message
from headstart.data.shards import damaged

MANIFEST = "manifest.parquet"
CSV_VIEW = "manifest.csv"
MOST_IN_CSV = 100_000
"""Images of which there is a CSV view too."""
ROWS = 2**14
"""Rows that are in memory at once."""


class ManifestRow(NamedTuple):
    """What is known of one image; after it the values of the source's ``metadata_columns``, which are strings.

    ``id`` has 16, ``sha256`` (of the content) 64, ``phash`` 16 hex digits; ``group`` is empty where there is none.
    Width, height (pixels), ``phash`` and ``contrast`` are those of ``ImageInfo``.
    """

    id: str
    source: str
    label: str
    split: str
    group: str
    sha256: str
    width: int
    height: int
    phash: str
    contrast: float


MANIFEST_COLUMNS = ManifestRow._fields


def write_manifest(folder: Path, metadata_columns: Sequence[str], rows: Iterable[Sequence[Any]], count: int) -> str:
    """Write ``count`` rows, each a ``ManifestRow`` and its metadata; return the sha256 of all in CSV, as hex digits.

    The sha256 depends on the rows alone, unlike that of the Parquet file, which another version may write otherwise.
    """
    import pyarrow as pa  # noqa: PLC0415  (training reads the shards' index alone)
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    names = (*MANIFEST_COLUMNS, *metadata_columns)
    schema = pa.schema([(name, _arrow_type(name)) for name in names])
    with ExitStack() as stack:
        in_csv = count <= MOST_IN_CSV
        view = stack.enter_context((folder / CSV_VIEW).open("w", newline="", encoding="utf-8")) if in_csv else None
        lines = _HashedLines(view)
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(names)
        file = stack.enter_context(
            ParquetWriter(folder / MANIFEST, schema, compression="zstd", write_page_checksum=True)
        )
        remaining = iter(rows)
        while chunk := list(islice(remaining, ROWS)):
            table.writerows(chunk)
            columns = [[_from_text(name, row[i]) for row in chunk] for i, name in enumerate(names)]
            file.write_batch(pa.record_batch(columns, schema=schema))
    return lines.sha256.hexdigest()


def manifest_rows(folder: Path = PREPARED) -> Iterator[dict[str, Any]]:
    """Stream the manifest, the single source of truth on images, splits and labels: the values of each row by column.

    They are as in ``ManifestRow``. Of a store that an earlier version wrote, the CSV is read.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not (folder / MANIFEST).exists():
        yield from table_rows(folder / CSV_VIEW)
        return
    for batch in _batches(folder):
        names = batch.schema.names
        columns = [[_to_text(name, value) for value in batch[name].to_pylist()] for name in names]
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def manifest_column(name: str, folder: Path = PREPARED) -> Iterator[NDArray[Any]]:
    """Yield a column of the manifest in its type, some thousand rows at a time: (n,), sha256 as uint8 (n, 32)."""
    for batch in _batches(folder, [name]):
        if name == "sha256":
            yield np.frombuffer(batch[name].buffers()[1], np.uint8).reshape(-1, 32)[batch[name].offset :][: len(batch)]
        else:
            yield batch[name].to_numpy(zero_copy_only=False)


def sources_and_splits(rows: Collection[int], folder: Path = PREPARED) -> dict[int, tuple[str, str]]:
    """Return the source and the split of some rows of the manifest."""
    found, first = dict[int, tuple[str, str]](), 0
    wanted = sorted(rows, reverse=True)
    for batch in _batches(folder, ["source", "split"]):
        while wanted and wanted[-1] < first + len(batch):
            row = wanted.pop()
            found[row] = batch["source"][row - first].as_py(), batch["split"][row - first].as_py()
        first += len(batch)
    return found


def _batches(folder: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    path = existing(folder / MANIFEST)
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            # One group of rows after the other: an iterator over all of them keeps the bytes of those that it has read.
            for group in range(file.num_row_groups):
                yield from file.iter_batches(ROWS, row_groups=[group], columns=columns)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and storage_message(error) is not None:
            raise
        raise damaged(path, f"is damaged ({first_line(error)})") from error


class _HashedLines:
    """A file for ``csv.writer``, which hashes the lines and writes them to another one if there is one."""

    def __init__(self, file: TextIO | None) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, line: str) -> None:
        self.sha256.update(line.encode())
        if self._file is not None:
            self._file.write(line)


def _arrow_type(name: str) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    types = {"id": pa.uint64(), "sha256": pa.binary(32), "phash": pa.uint64(), "contrast": pa.float64()}
    return (types | {"width": pa.uint32(), "height": pa.uint32()}).get(name, pa.string())


def _from_text(name: str, value: Any) -> Any:
    """Return a value of a ``ManifestRow`` as the file has it: digits as the number or the bytes that they stand for."""
    if name in ("id", "phash"):
        return int(value, 16)
    return bytes.fromhex(value) if name == "sha256" else value


def _to_text(name: str, value: Any) -> Any:
    """Return what ``_from_text`` got."""
    if name in ("id", "phash"):
        return f"{value:016x}"
    return value.hex() if name == "sha256" else value
