"""The rows that earlier runs packed, by the sha256 of their sources, so that nothing is decoded twice.

They lie in the store that is there and in the shards that killed runs finished.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.ground.artifacts import SPLITS, manifest_rows, read_json, replacing
from headstart.ground.shards import checksum, read_index, shard_path
from headstart.libraries.images import Look, Outcome

# What made a killed run's shards, and beside each finished one its rows; in the folder `work` beside the shards.
MADE = Path("work/made.json")
ROWS = np.dtype(
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
SCHEMA = """
CREATE TABLE rows (
    sha256 BLOB, training, width, height, phash, contrast,
    shard, offset, bytes, crc32, stored_height, stored_width, folder,
    PRIMARY KEY (sha256, training)
) WITHOUT ROWID
"""


class EarlierRow(NamedTuple):
    """A row as it was packed, for training or not, what its picture looks like, and its size in pixels as stored."""

    packed: bytes
    training: bool
    look: Look
    stored_height: int
    stored_width: int


class EarlierRows:
    """Rows that are there already; a row whose bytes are damaged is as if it were not.

    Worker processes can have a copy, which opens the index by itself.
    """

    def __init__(self, index: Path, made: dict[str, Any]) -> None:
        """Begin an index.

        Args:
            index: a new file.
            made: what the pixels follow from beside the pictures; rows of other ones are not taken.
        """
        self._index, self._made = index, made
        self._folders: list[Path] = []
        self._database: sqlite3.Connection | None = None
        with sqlite3.connect(index) as database:
            database.execute(SCHEMA)
        database.close()

    def add(self, folder: Path) -> int:
        """Take the rows of a store, or of what a killed run left, that are not known yet; give their number."""
        number = len(self._folders)
        self._folders.append(folder)
        rows = ((*row, number) for row in (_finished(folder, self._made) or _left(folder, self._made)))
        with sqlite3.connect(self._index) as database:
            database.execute("PRAGMA synchronous=OFF")
            added = database.executemany(
                "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
        database.close()
        return added.rowcount

    def find(self, sha256: bytes, *, training: bool, certain: bool) -> EarlierRow | None:
        """Give a picture's row.

        Args:
            sha256: of the picture's source.
            training: the row that is wanted: the one for training, or the one for evaluation.
            certain: whether the other one is of no use.
        """
        rows = self._connected().execute(
            "SELECT folder, shard, offset, bytes, crc32, training, stored_height, stored_width, "
            "width, height, phash, contrast "
            "FROM rows WHERE sha256 = ? AND (training = ? OR NOT ?) ORDER BY training = ? DESC",
            (sha256, training, certain, training),
        )
        for folder, shard, offset, size, crc32, of_training, height, width, *look in rows:
            packed = _read(shard_path(self._folders[folder], shard), offset, size)
            if zlib.crc32(packed) == crc32:
                return EarlierRow(packed, bool(of_training), Look(*look), height, width)
        return None

    def close(self) -> None:
        """Close the index."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(f"{self._index.resolve().as_uri()}?mode=ro", uri=True)
        return self._database


def write_rows(folder: Path, shard: int, outcomes: list[Outcome]) -> None:
    """Say which rows a finished shard has, for a run that comes after a kill."""
    rows = [
        (outcome.sha256, outcome.training, *outcome.look, *outcome.row)
        for outcome in outcomes
        if outcome.look is not None and outcome.row is not None
    ]
    with replacing(_rows_path(folder, shard)) as aside, aside.open("wb") as file:
        np.save(file, np.array(rows, ROWS))


def forget_rows(folder: Path, shard: int) -> None:
    """Take back what ``write_rows`` said."""
    _rows_path(folder, shard).unlink(missing_ok=True)


def is_made(about: Path, made: dict[str, Any]) -> bool:
    """Tell whether a JSON file is there and says, perhaps among other things, how rows were made."""
    return about.exists() and made == {key: value for key, value in read_json(about).items() if key in made}


def _rows_path(folder: Path, shard: int) -> Path:
    return folder / "work" / f"rows-{shard:05d}.npy"


def _left(folder: Path, made: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """List the rows of a killed run's finished shards."""
    if is_made(folder / MADE, made):
        for path in sorted((folder / "work").glob("rows-*.npy")):
            yield from map(tuple, np.load(path).tolist())


def _finished(folder: Path, made: dict[str, Any]) -> Iterator[tuple[Any, ...]] | None:
    """List the rows of a whole store; None where there is none that is of use."""
    if not is_made(folder / "dataset.json", made):
        return None
    checksums = read_json(folder / "dataset.json")["crc32"]
    if any(checksum(folder / name) != crc32 for name, crc32 in checksums.items()):
        return None
    return _of_store(folder)


def _of_store(folder: Path) -> Iterator[tuple[Any, ...]]:
    train = SPLITS.index("train")
    for row, place in zip(manifest_rows(folder), read_index(folder), strict=True):
        _, offset, size, crc32, shard, _, height, width, split = place.item()
        look = Look(int(row["width"]), int(row["height"]), row["phash"], float(row["contrast"]))
        yield bytes.fromhex(row["sha256"]), split == train, *look, shard, offset, size, crc32, height, width


def _read(path: Path, offset: int, size: int) -> bytes:
    """Read a part of a file; what is not there is left out."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""
