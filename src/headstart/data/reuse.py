"""Reuse of packed images: found by the sha256 of their sources, so that no image is decoded twice.

They are in the shards of the finished store, and in those that a killed run completed.
"""

import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.core.io import atomic_write, read_json, write_json
from headstart.data.dataset import SPLITS, manifest_rows
from headstart.data.image_info import ImageInfo, PackedImage
from headstart.data.shards import checksum, read_index, shard_path

# In an unfinished store: what determines its pixels, beside the shards.
SPEC_PATH = Path("work/made.json")
# One image of an unfinished store's ``rows-SHARD.npy``, which lists the images of a completed shard.
SHARD_ROW_DTYPE = np.dtype(
    [
        ("sha256", "V32"),
        ("training", "?"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("phash", "U16"),
        ("contrast", "<f8"),
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("crc32", "<u4"),
        ("stored_height", "<u2"),
        ("stored_width", "<u2"),
    ]
)
REUSE_TABLE = """
CREATE TABLE rows (
    sha256 BLOB, training, width, height, phash, contrast,
    shard, offset, bytes, crc32, stored_height, stored_width, folder,
    PRIMARY KEY (sha256, training)
) WITHOUT ROWID
"""


class PackedRow(NamedTuple):
    """A packed image: its bytes, its info, and its size in pixels as stored, for training or for evaluation."""

    packed: bytes
    for_training: bool
    info: ImageInfo
    stored_height: int
    stored_width: int


class ReusableRows:
    """An index of packed images that already exist; one whose bytes are damaged is not returned.

    It can be pickled to worker processes, each of which opens the index itself.
    """

    def __init__(self, index: Path, spec: dict[str, Any]) -> None:
        """Create an empty index.

        Args:
            index: a new file.
            spec: of ``packing.store_spec``; images packed under another one are not reused.
        """
        self._index, self._spec = index, spec
        self._folders: list[Path] = []
        self._database: sqlite3.Connection | None = None
        with sqlite3.connect(index) as database:
            database.execute(REUSE_TABLE)
        database.close()

    def add(self, folder: Path) -> int:
        """Index the images of a finished or unfinished store that are not indexed yet; return their number."""
        number = len(self._folders)
        self._folders.append(folder)
        rows = ((*row, number) for row in (_finished_rows(folder, self._spec) or _unfinished_rows(folder, self._spec)))
        with sqlite3.connect(self._index) as database:
            database.execute("PRAGMA synchronous=OFF")
            added = database.executemany(
                "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
        database.close()
        return added.rowcount

    def find(self, sha256: bytes, *, for_training: bool, exact: bool) -> PackedRow | None:
        """Return an image as it was packed before, or None.

        Args:
            sha256: of the image's source.
            for_training: which of its two sizes is wanted, the one for training or the one for evaluation.
            exact: whether only that size will do; otherwise it is preferred.
        """
        rows = self._connected().execute(
            "SELECT folder, shard, offset, bytes, crc32, training, stored_height, stored_width, "
            "width, height, phash, contrast "
            "FROM rows WHERE sha256 = ? AND (training = ? OR NOT ?) ORDER BY training = ? DESC",
            (sha256, for_training, exact, for_training),
        )
        for folder, shard, offset, size, crc32, training, height, width, *info in rows:
            packed = _read_bytes(shard_path(self._folders[folder], shard), offset, size)
            if zlib.crc32(packed) == crc32:
                return PackedRow(packed, bool(training), ImageInfo(*info), height, width)
        return None

    def close(self) -> None:
        """Close the index; ``find`` opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(f"{self._index.resolve().as_uri()}?mode=ro", uri=True)
        return self._database


@contextmanager
def resumable_store(final: Path) -> Iterator[Path]:
    """Yield a temporary folder for a store, which becomes ``final`` when all went well.

    Its folder ``work`` is for temporary files. What earlier runs completed before they failed or were killed is in its
    folder ``left``, one folder for each run. Both are removed at the end.
    """
    with atomic_write(final, resumable=True) as folder:
        work, left = folder / "work", folder / "left"
        left.mkdir(parents=True, exist_ok=True)
        run = left / f"{max((int(each.name) for each in left.iterdir()), default=0) + 1:05d}"
        run.mkdir()
        for path in folder.iterdir():
            if path != left:
                path.rename(run / path.name)
        work.mkdir()
        try:
            yield folder
        except BaseException:
            if not any(folder.rglob("rows-*.npy")):  # nothing that the next run could reuse
                shutil.rmtree(folder)
            raise
        shutil.rmtree(left)
        shutil.rmtree(work)


def index_reusable_rows(folder: Path, final: Path, spec: dict[str, Any]) -> ReusableRows:
    """Index the packed images of the finished store and of unfinished ones; record the spec of the new store.

    Args:
        folder: of ``resumable_store``.
        final: the finished store, if there is one.
        spec: of the new store.
    """
    reusable = ReusableRows(folder / "work" / "earlier.sqlite", spec)
    reusable.add(final)
    for run in sorted((folder / "left").iterdir(), reverse=True):
        if not reusable.add(run):
            shutil.rmtree(run)
    write_json(folder / SPEC_PATH, spec)
    return reusable


def has_reusable_store(folder: Path, final: Path, spec: dict[str, Any]) -> bool:
    """Return whether the finished store, or an unfinished one in ``resumable_store``'s folder, has this spec."""
    return any(_has_spec(path, spec) for path in (final / "dataset.json", *(folder / "left").glob(f"*/{SPEC_PATH}")))


def write_shard_rows(folder: Path, shard: int, images: list[PackedImage]) -> None:
    """List the images of a completed shard, for the run after a kill."""
    rows = [
        (image.sha256, image.for_training, *image.info, *image.entry)
        for image in images
        if image.info is not None and image.entry is not None
    ]
    with atomic_write(_shard_rows_path(folder, shard)) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(rows, SHARD_ROW_DTYPE))


def remove_shard_rows(folder: Path, shard: int) -> None:
    """Remove the list of a shard's images, before the shard is replaced."""
    _shard_rows_path(folder, shard).unlink(missing_ok=True)


def _shard_rows_path(folder: Path, shard: int) -> Path:
    return folder / "work" / f"rows-{shard:05d}.npy"


def _has_spec(path: Path, spec: dict[str, Any]) -> bool:
    """Return whether a JSON file exists and contains the spec."""
    return path.exists() and spec == {key: value for key, value in read_json(path).items() if key in spec}


def _unfinished_rows(folder: Path, spec: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the images of a killed run's completed shards."""
    if _has_spec(folder / SPEC_PATH, spec):
        for path in sorted((folder / "work").glob("rows-*.npy")):
            yield from map(tuple, np.load(path).tolist())


def _finished_rows(folder: Path, spec: dict[str, Any]) -> Iterator[tuple[Any, ...]] | None:
    """Return the images of a finished store; None if there is none, or one of another spec or with a damaged index."""
    if not _has_spec(folder / "dataset.json", spec):
        return None
    checksums = read_json(folder / "dataset.json")["crc32"]
    if any(checksum(folder / name) != crc32 for name, crc32 in checksums.items()):
        return None
    return _indexed_rows(folder)


def _indexed_rows(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Yield the images of a finished store from its manifest and its index."""
    train = SPLITS.index("train")
    for row, entry in zip(manifest_rows(folder), read_index(folder), strict=True):
        _, offset, size, crc32, shard, _, height, width, split = entry.item()
        info = ImageInfo(int(row["width"]), int(row["height"]), row["phash"], float(row["contrast"]))
        yield bytes.fromhex(row["sha256"]), split == train, *info, shard, offset, size, crc32, height, width


def _read_bytes(path: Path, offset: int, size: int) -> bytes:
    """Return a range of a file's bytes, as far as they exist."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""
