"""Feature rows kept by content, so that going back to an earlier backbone or data set costs no forward pass.

One SQLite file for each way of computing features (weights, input, dtype); in it one row for each picture, named by a
hash of the very pixels that the backbone sees. Rows are committed batch by batch: what a killed run computed is kept.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from headstart.ground.errors import UserError

SECONDS_TO_WAIT_FOR_A_LOCK = 60


class FeatureCache:
    """A file of feature rows, safe to share between processes of one machine."""

    def __init__(self, folder: Path, key: dict[str, Any], width: int, dtype: DTypeLike) -> None:
        """Open or make the file.

        Args:
            folder: where the files of all keys are.
            key: everything but the picture that a row depends on.
            width: values in a row.
            dtype: of the values.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path, self._width, self._dtype = folder / f"{name[:32]}.sqlite", width, np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT_FOR_A_LOCK)
        with self._explaining():
            self._file.execute("CREATE TABLE IF NOT EXISTS rows (picture BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")

    def missing(self, pictures: Iterable[bytes]) -> Iterator[bool]:
        """Say of each picture whether it has no row yet."""
        with self._explaining():
            for picture in pictures:
                yield self._file.execute("SELECT 1 FROM rows WHERE picture = ?", (picture,)).fetchone() is None

    def add(self, pictures: list[bytes], rows: NDArray[Any]) -> None:
        """Keep the rows (n, width) of n pictures, all or none."""
        values = np.ascontiguousarray(rows, self._dtype)
        with self._explaining(), self._file:
            pairs = zip(pictures, (row.tobytes() for row in values), strict=True)
            self._file.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", pairs)

    def row(self, picture: bytes) -> NDArray[Any]:
        """Give one row (width,); raises UserError where it is damaged."""
        with self._explaining():
            found = self._file.execute("SELECT row FROM rows WHERE picture = ?", (picture,)).fetchone()
        if found is None or len(found[0]) != self._width * self._dtype.itemsize:
            raise UserError(f"{self.path} is damaged: delete it, and the features are computed again")
        return np.frombuffer(found[0], self._dtype)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise UserError(
                f"{self.path} can't be used ({error}): delete it, or set run.cache to another folder"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def picture_key(pixels: Tensor) -> bytes:
    """Name a picture by the pixels that the backbone sees, uint8 (height, width, 3): 16 bytes."""
    content = np.ascontiguousarray(pixels.numpy())
    return hashlib.blake2b(content.data, digest_size=16, salt=str(content.shape[:2]).encode()[:16]).digest()
