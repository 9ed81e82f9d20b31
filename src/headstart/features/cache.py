"""Feature rows kept by content, so that going back to an earlier backbone or data set costs no forward pass.

One SQLite file for each way of computing features (weights, input, dtype); in it one row for each image, named by a
hash of the pixels that are stored. Rows are committed batch by batch: what a killed run computed is kept.
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

from headstart.core.errors import UserError
from headstart.core.io import atomic_write, existing, write_json
from headstart.core.paths import FEATURES


def write_features(rows: Iterator[NDArray[Any]], shape: tuple[int, int], dtype: str, about: dict[str, Any]) -> None:
    """Write one feature row an image, in the manifest's order, and what made them; one row is in memory at a time."""
    with atomic_write(FEATURES) as aside:
        aside.mkdir()
        features = np.lib.format.open_memmap(aside / "features.npy", mode="w+", dtype=np.dtype(dtype), shape=shape)
        for place, row in zip(features, rows, strict=True):
            place[:] = row
        features.flush()
        write_json(aside / "features.json", about)


def read_features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the feature rows of the given images, float32 (n, width)."""
    features = np.load(existing(FEATURES / "features.npy"), mmap_mode="r")
    return np.asarray(features[rows], np.float32)


SECONDS_TO_WAIT_FOR_A_LOCK = 60


class FeatureCache:
    """A file of feature rows, safe to share between processes of one machine."""

    def __init__(self, folder: Path, key: dict[str, Any], width: int, dtype: DTypeLike) -> None:
        """Open or make the file.

        Args:
            folder: where the files of all keys are.
            key: everything but the image that a row depends on.
            width: values in a row.
            dtype: of the values.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path, self._width, self._dtype = folder / f"{name[:32]}.sqlite", width, np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT_FOR_A_LOCK)
        with self._explaining():
            self._file.execute("CREATE TABLE IF NOT EXISTS rows (picture BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")

    def missing(self, images: Iterable[bytes]) -> Iterator[bool]:
        """Say of each image whether it has no row yet."""
        with self._explaining():
            for image in images:
                yield self._file.execute("SELECT 1 FROM rows WHERE picture = ?", (image,)).fetchone() is None

    def add(self, images: list[bytes], rows: NDArray[Any]) -> None:
        """Keep the rows (n, width) of n images, all or none."""
        values = np.ascontiguousarray(rows, self._dtype)
        with self._explaining(), self._file:
            pairs = zip(images, (row.tobytes() for row in values), strict=True)
            self._file.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", pairs)

    def row(self, image: bytes) -> NDArray[Any]:
        """Return one row (width,); raises UserError where it is damaged."""
        with self._explaining():
            found = self._file.execute("SELECT row FROM rows WHERE picture = ?", (image,)).fetchone()
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


def image_key(stored: NDArray[np.uint8], *, training: bool) -> bytes:
    """Name an image by what evaluation's pixels follow from: 16 bytes.

    Args:
        stored: uint8 (height, width, 3).
        training: whether it is stored for training, and so resized for evaluation.
    """
    content, shape = np.ascontiguousarray(stored), str(stored.shape[:2]).encode()[:16]
    return hashlib.blake2b(content.data, digest_size=16, salt=shape, person=b"training" * training).digest()
