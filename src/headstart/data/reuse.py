"""Reuse of packed images, by the sha256 of their sources: those of the finished store, and of killed runs' shards."""

import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.core.io import atomic_write, read_json, write_json
from headstart.core.storage import storage_errors
from headstart.data.dataset import SPLITS, manifest_rows
from headstart.data.image_info import ImageInfo, PackedImage
from headstart.data.shards import checksum, read_index, shard_path
from headstart.images.decode import Note

# Of a store: the notes of images that have one, by the hex digits of their sha256. An unfinished store has one a shard.
NOTES_PATH = Path("notes.json")
# In an unfinished store: what determines its pixels, beside the shards.
SPEC_PATH = Path("work/made.json")
# One image of an unfinished store's ``rows-SHARD.npy``, which lists the images of a completed shard.
SHARD_ROW_DTYPE = np.dtype([
    ("sha256", "V32"), ("training", "?"), ("width", "<u4"), ("height", "<u4"), ("phash", "U16"), ("contrast", "<f8"),
    ("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4"),
    ("stored_height", "<u2"), ("stored_width", "<u2"),
])  # fmt: skip
REUSE_TABLE = f"""
CREATE TABLE rows ({", ".join(SHARD_ROW_DTYPE.names or ())}, folder, PRIMARY KEY (sha256, training)) WITHOUT ROWID
"""
REUSE_INSERT = "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class PackedRow(NamedTuple):
    """A packed image: its bytes, its info, and its size in pixels as stored, for training or for evaluation."""

    packed: bytes
    for_training: bool
    info: ImageInfo
    stored_height: int
    stored_width: int


class ReusableRows:
    """An index of packed images that already exist; one whose bytes are damaged is not returned.

    It can be pickled to worker processes, each of which opens the index itself. ``notes`` has the images' notes by the
    hex digits of their sha256.
    """

    def __init__(self, index: Path, spec: dict[str, Any]) -> None:
        """Create an empty index in a new file, for images that were stored by this ``packing.store_spec`` only."""
        self._index, self._spec = index, spec
        self.notes: dict[str, Note] = {}
        self._folders: list[Path] = []
        self._database: sqlite3.Connection | None = None
        with sqlite3.connect(index) as database:
            database.execute(REUSE_TABLE)
        database.close()

    def add(self, folder: Path) -> int:
        """Index the images of a finished or unfinished store that are not indexed yet; return their number."""
        number = len(self._folders)
        self._folders.append(folder)
        for path in (folder / NOTES_PATH, *(folder / "work").glob("notes-*.json")):
            if path.exists():
                self.notes |= {sha256: Note(*note) for sha256, note in read_json(path).items()}
        rows = ((*row, number) for row in _rows_of(folder, self._spec))
        with sqlite3.connect(self._index) as database:
            database.execute("PRAGMA synchronous=OFF")
            added = database.executemany(REUSE_INSERT, rows)
        database.close()
        return added.rowcount

    def find(self, sha256: bytes, *, for_training: bool, exact: bool) -> PackedRow | None:
        """Return an image as it was packed before, for training or for evaluation, or None.

        If not ``exact``, the other of the two sizes will do too.
        """
        if self._database is None:
            self._database = sqlite3.connect(f"{self._index.resolve().as_uri()}?mode=ro", uri=True)
        rows = self._database.execute(
            "SELECT folder, shard, offset, bytes, crc32, training, stored_height, stored_width, "
            "width, height, phash, contrast "
            "FROM rows WHERE sha256 = ? AND (training = ? OR NOT ?) ORDER BY training = ? DESC",
            (sha256, for_training, exact, for_training),
        )
        for folder, shard, offset, size, crc32, training, height, width, *info in rows:
            packed = b""
            with suppress(FileNotFoundError), shard_path(self._folders[folder], shard).open("rb") as file:
                file.seek(offset)
                packed = file.read(size)
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
            with storage_errors(final):  # before what is of no use is removed, and the disk no longer full
                yield folder
        except BaseException:
            if not any(folder.rglob("rows-*.npy")):  # nothing that the next run could reuse
                shutil.rmtree(folder)
            raise
        shutil.rmtree(left)
        shutil.rmtree(work)


def index_reusable_rows(folder: Path, final: Path, spec: dict[str, Any]) -> ReusableRows:
    """Index what can be reused for a store in ``resumable_store``'s folder; record there the spec of that store."""
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
    write_notes(
        folder / "work" / f"notes-{shard:05d}.json", {each.sha256.hex(): each.note for each in images if each.note}
    )
    rows = [(each.sha256, each.for_training, *each.info, *each.entry) for each in images if each.info and each.entry]
    with atomic_write(shard_rows_path(folder, shard)) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(rows, SHARD_ROW_DTYPE))


def write_notes(path: Path, notes: dict[str, Note]) -> None:
    """Write the notes of a store or a shard, by the hex digits of the images' sha256, where there are any."""
    if notes:
        write_json(path, notes)


def shard_rows_path(folder: Path, shard: int) -> Path:
    """Return the path of the list of a completed shard's images."""
    return folder / "work" / f"rows-{shard:05d}.npy"


def _has_spec(path: Path, spec: dict[str, Any]) -> bool:
    return path.exists() and spec == {key: value for key, value in read_json(path).items() if key in spec}


def _rows_of(folder: Path, spec: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the images of an unfinished store's completed shards, or of a finished one whose tables are undamaged."""
    if _has_spec(folder / SPEC_PATH, spec):
        for path in sorted((folder / "work").glob("rows-*.npy")):
            yield from map(tuple, np.load(path).tolist())
    if not _has_spec(folder / "dataset.json", spec):
        return
    checksums = read_json(folder / "dataset.json")["crc32"]
    if any(checksum(folder / name) != crc32 for name, crc32 in checksums.items()):
        return
    for row, entry in zip(manifest_rows(folder), read_index(folder), strict=True):
        _, offset, size, crc32, shard, _, height, width, split = entry.item()
        info = ImageInfo(int(row["width"]), int(row["height"]), row["phash"], float(row["contrast"]))
        for_training = SPLITS[split] == "train"
        yield bytes.fromhex(row["sha256"]), for_training, *info, shard, offset, size, crc32, height, width
