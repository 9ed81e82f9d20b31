"""Reuse of packed images, by the sha256 of their sources: those of the finished store, and of killed runs' shards."""

import json
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from headstart.core.errors import UserError
from headstart.core.io import atomic_write, read_json, write_json
from headstart.core.storage import storage_errors
from headstart.data.dataset import SPLITS
from headstart.data.image_info import ImageInfo, PackedImage
from headstart.data.manifest import manifest_rows
from headstart.data.shards import ShardEntry, checksum, read_index, shard_path
from headstart.images.decode import Note

# Of a finished store: the notes of images that have one, by the hex digits of their sha256.
NOTES_PATH = Path("notes.json")
# In an unfinished store: what determines its pixels, beside the shards.
SPEC_PATH = Path("work/made.json")
REUSE_TABLE = """
CREATE TABLE rows (
    sha256 TEXT, training, width, height, phash, contrast, shard, offset, bytes, crc32, stored_height, stored_width,
    note, folder, PRIMARY KEY (sha256, training)
) WITHOUT ROWID
"""
REUSE_INSERT = "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class PackedRow(NamedTuple):
    """A packed image: its bytes, info and note, and its size in pixels as stored, for training or for evaluation."""

    packed: bytes
    for_training: bool
    info: ImageInfo
    stored_height: int
    stored_width: int
    note: Note | None


class ReusableRows:
    """An index of packed images that already exist; one whose bytes are damaged is not returned.

    It can be pickled to other processes, each of which opens the index itself.
    """

    def __init__(self, index: Path, spec: dict[str, Any]) -> None:
        """Create an empty index in a new file, for images that were stored by this ``packing.store_spec`` only."""
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
        rows = (
            (each.sha256, each.for_training, *each.info, *each.entry, each.note and json.dumps(each.note), number)
            for each in _packed_images(folder, self._spec)
            if each.info and each.entry
        )
        with sqlite3.connect(self._index) as database:
            database.execute("PRAGMA synchronous=OFF")
            added = database.executemany(REUSE_INSERT, rows)
        database.close()
        return added.rowcount

    def find(self, sha256: str, *, for_training: bool, exact: bool) -> PackedRow | None:
        """Return an image as it was packed before, for training or for evaluation, or None.

        If not ``exact``, the other of the two sizes will do too.
        """
        if self._database is None:
            # Immutable: nobody writes it while it is read, and file servers may have no locks.
            uri = f"{self._index.resolve().as_uri()}?immutable=1"
            self._database = sqlite3.connect(uri, uri=True)
        rows = self._database.execute(
            "SELECT folder, shard, offset, bytes, crc32, training, stored_height, stored_width, note, "
            "width, height, phash, contrast "
            "FROM rows WHERE sha256 = ? AND (training = ? OR NOT ?) ORDER BY training = ? DESC",
            (sha256, for_training, exact, for_training),
        )
        for folder, shard, offset, size, crc32, training, height, width, note, *info in rows:
            packed = b""
            with suppress(FileNotFoundError), shard_path(self._folders[folder], shard).open("rb") as file:
                file.seek(offset)
                packed = file.read(size)
            if zlib.crc32(packed) == crc32:
                noted = Note(*json.loads(note)) if note else None
                return PackedRow(packed, bool(training), ImageInfo(*info), height, width, noted)
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
            if not any(folder.rglob("packed-*.json")):  # nothing that the next run could reuse
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


def write_packed(folder: Path, shard: int, images: Sequence[PackedImage]) -> None:
    """List the images of a completed shard, for the process that joins all, or for the run after a kill."""
    with atomic_write(packed_path(folder, shard)) as temporary:
        temporary.write_text(json.dumps(images), encoding="utf-8")


def read_packed(folder: Path, shard: int) -> list[PackedImage]:
    """Read the list of a completed shard's images."""
    return list(_read_packed(packed_path(folder, shard)))


def _read_packed(path: Path) -> Iterator[PackedImage]:
    for source, label, sha256, info, for_training, decoded, entry, problem, note in read_json(path):
        known = info and ImageInfo(*info), for_training, decoded, entry and ShardEntry(*entry)
        yield PackedImage(source, label, sha256, *known, problem, note and Note(*note))


def packed_path(folder: Path, shard: int) -> Path:
    """Return the path of the list of a completed shard's images."""
    return folder / "work" / f"packed-{shard:05d}.json"


def _has_spec(path: Path, spec: dict[str, Any]) -> bool:
    return path.exists() and spec == {key: value for key, value in read_json(path).items() if key in spec}


def _packed_images(folder: Path, spec: dict[str, Any]) -> Iterator[PackedImage]:
    """Yield the images of an unfinished store's completed shards, or of a finished one whose index is undamaged."""
    if _has_spec(folder / SPEC_PATH, spec):
        for path in sorted((folder / "work").glob("packed-*.json")):
            yield from _read_packed(path)
    if not _has_spec(folder / "dataset.json", spec):
        return
    checksums = read_json(folder / "dataset.json")["crc32"]
    if any(checksum(folder / name) != crc32 for name, crc32 in checksums.items()):
        return
    notes = read_json(folder / NOTES_PATH) if (folder / NOTES_PATH).exists() else {}
    with suppress(UserError):  # the manifest is damaged
        for row, entry in zip(manifest_rows(folder), read_index(folder), strict=True):
            _, offset, size, crc32, shard, _, height, width, split = entry.item()
            note = notes.get(row["sha256"])
            yield PackedImage(
                row["source"],
                sha256=row["sha256"],
                info=ImageInfo(int(row["width"]), int(row["height"]), row["phash"], float(row["contrast"])),
                for_training=SPLITS[split] == "train",
                entry=ShardEntry(shard, offset, size, crc32, height, width),
                note=note and Note(*note),
            )
