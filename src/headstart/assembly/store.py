"""The folder of packed pictures while it is written, and the earlier one, whose rows are used again."""

import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import PIL

from headstart.ground.artifacts import manifest_rows, read_json, shard_path
from headstart.libraries.images import Outcome

SHARD_BYTES = 256 * 2**20
# To be raised when the pixels of a picture change for another reason than Pillow's version or the backbone's input.
PIXELS_VERSION = 1


def made_by(config: dict[str, Any]) -> dict[str, Any]:
    """Tell what the stored pixels follow from, beside the pictures."""
    return {"input": config, "pillow": PIL.__version__, "pixels_version": PIXELS_VERSION}


class ShardWriter:
    """Appends rows to files of at most ``limit`` bytes; a row is never divided, and a longer one has its own file."""

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, limit
        self._shard, self._offset = -1, 0
        self._file: BinaryIO | None = None
        self.shard_bytes: list[int] = []

    def append(self, row: bytes) -> tuple[int, int]:
        """Write a row; give its shard and its offset in bytes."""
        if self._file is None or (self._offset and self._offset + len(row) > self._limit):
            self.close()
            self._shard, self._offset = self._shard + 1, 0
            self._file = shard_path(self._folder, self._shard).open("xb")
        self._file.write(row)
        self._offset += len(row)
        return self._shard, self._offset - len(row)

    def close(self) -> None:
        """Close the last file."""
        if self._file is not None:
            self._file.close()
            self.shard_bytes.append(self._offset)
            self._file = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EarlierRows:
    """The rows of the store that is there, by the sha256 of their sources; none where their pixels may differ.

    Worker processes can have a copy, which opens the index by itself.
    """

    def __init__(self, folder: Path, made: dict[str, Any], index: Path) -> None:
        """Index the store.

        Args:
            folder: of the earlier store, which may be missing.
            made: ``made_by`` of the store that is being written.
            index: a new file.
        """
        self.made, self._folder, self._index = made, folder, index
        with sqlite3.connect(index) as database:
            database.execute("PRAGMA synchronous=OFF")
            database.execute(
                "CREATE TABLE rows (sha256 BLOB PRIMARY KEY, width, height, shard, offset, "
                "stored_width, stored_height) WITHOUT ROWID"
            )
            if _usable(folder, made):
                database.executemany(
                    "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        (
                            bytes.fromhex(row["sha256"]),
                            *(
                                int(row[name])
                                for name in ("width", "height", "shard", "offset", "stored_width", "stored_height")
                            ),
                        )
                        for row in manifest_rows(folder)
                    ),
                )
        database.close()
        self._database: sqlite3.Connection | None = None

    def __contains__(self, sha256: object) -> bool:
        return self._connected().execute("SELECT 1 FROM rows WHERE sha256 = ?", (sha256,)).fetchone() is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}

    def completed(self, outcome: Outcome) -> Outcome:
        """Give the outcome of a picture that is known, with its sizes and pixels."""
        query = "SELECT width, height, shard, offset, stored_width, stored_height FROM rows WHERE sha256 = ?"
        width, height, shard, offset, *stored = self._connected().execute(query, (outcome.sha256,)).fetchone()
        shape = (*reversed(stored), 3)
        pixels = np.fromfile(shard_path(self._folder, shard), np.uint8, math.prod(shape), offset=offset).reshape(shape)
        return replace(outcome, width=width, height=height, pixels=pixels)

    def close(self) -> None:
        """Close the index."""
        if self._database is not None:
            self._database.close()

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(f"{self._index.resolve().as_uri()}?mode=ro", uri=True)
        return self._database


def _usable(folder: Path, made: dict[str, Any]) -> bool:
    """Tell whether the earlier store is whole and its pixels are what this run would make."""
    if not (folder / "dataset.json").exists() or not (folder / "manifest.csv").exists():
        return False
    about = read_json(folder / "dataset.json")
    sizes = {shard_path(folder, i): size for i, size in enumerate(about.get("shard_bytes", []))}
    return all(about.get(key) == value for key, value in made.items()) and all(
        path.is_file() and path.stat().st_size == size for path, size in sizes.items()
    )
