"""Features on disk: the stage's output ``data/features``, and a cache by image content.

With the cache, going back to an earlier backbone or data set needs no forward pass. It has one SQLite file for each way
of computing features (weights, input, dtype), with one row for each image, by a hash of its stored pixels. Rows are
committed batch by batch: what a killed run computed is kept.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors.numpy import load_file, save_file

from headstart.core.errors import UserError
from headstart.core.io import atomic_write, existing, write_json
from headstart.core.paths import CHANGED_FEATURES, FEATURE_ROWS, FEATURES, FEATURES_INFO
from headstart.core.storage import storage_errors
from headstart.data.shards import write_array

SECONDS_TO_WAIT_FOR_A_LOCK = 60


def write_features(rows: Iterator[NDArray[Any]], shape: tuple[int, int], dtype: str, info: dict[str, Any]) -> None:
    """Write data/features, with one row in memory at a time, in the manifest's order.

    ``shape`` is the number of images, and of values in a row; ``info`` is what the features were computed from.
    """
    with atomic_write(FEATURES) as folder:
        folder.mkdir()
        write_array(folder / FEATURE_ROWS.name, rows, np.dtype(dtype), shape)
        write_json(folder / FEATURES_INFO.name, info)


def read_features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the features of the given rows, float32 (n, width)."""
    features = np.load(existing(FEATURE_ROWS), mmap_mode="r")
    return np.asarray(features[rows], np.float32)


def write_changed_features(rows: NDArray[np.int64], changes: Sequence[str], features: NDArray[Any]) -> None:
    """Write features (n, changes · width) of some rows of data/prepared into data/features, which exists."""
    by_change = dict(zip(changes, np.split(features, len(changes), axis=1), strict=True))
    with atomic_write(CHANGED_FEATURES) as temporary:
        save_file({"rows": rows, **{name: np.ascontiguousarray(each) for name, each in by_change.items()}}, temporary)


def read_changed_features() -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Read the rows (n,) and by each change their features, float32 (n, width); empty if nothing was tried."""
    existing(FEATURES)
    if not CHANGED_FEATURES.exists():
        return np.empty(0, np.int64), {}
    features = load_file(CHANGED_FEATURES)
    rows = features.pop("rows")
    return rows, {name: np.asarray(values, np.float32) for name, values in features.items()}


class FeatureCache:
    """A file of feature rows, which several processes of one machine can use at once."""

    def __init__(self, folder: Path, key: dict[str, Any], width: int, dtype: DTypeLike) -> None:
        """Open or create the file of ``key``, which has everything but the image that a row (width,) depends on."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path, self._width, self._dtype = folder / f"{name[:32]}.sqlite", width, np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        with storage_errors(self.path):
            self._database = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT_FOR_A_LOCK)
        with self._database_errors():
            self._database.execute("CREATE TABLE IF NOT EXISTS rows (picture BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")

    def missing(self, images: Iterable[bytes]) -> Iterator[bool]:
        """Yield for each image, given by its key, whether it has no row yet."""
        with self._database_errors():
            for image in images:
                yield self._database.execute("SELECT 1 FROM rows WHERE picture = ?", (image,)).fetchone() is None

    def add(self, images: list[bytes], rows: NDArray[Any]) -> None:
        """Add the rows (n, width) of n images, all or none."""
        values = np.ascontiguousarray(rows, self._dtype)
        with self._database_errors(), self._database:
            pairs = zip(images, (row.tobytes() for row in values), strict=True)
            self._database.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", pairs)

    def row(self, image: bytes) -> NDArray[Any]:
        """Return one row (width,); raises UserError if it is missing or damaged."""
        with self._database_errors():
            result = self._database.execute("SELECT row FROM rows WHERE picture = ?", (image,)).fetchone()
        if result is None or len(result[0]) != self._width * self._dtype.itemsize:
            raise UserError(f"{self.path} is damaged: delete it, and the features are computed again")
        return np.frombuffer(result[0], self._dtype)

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into UserError, or OSError where the disk is to blame, and close the file."""
        try:
            with storage_errors(self.path):
                yield
        except OSError:
            self._database.close()
            raise
        except sqlite3.DatabaseError as error:
            self._database.close()
            message = f"{self.path} can't be used ({error}): delete it, or set run.cache to another folder"
            raise UserError(message) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def image_key(stored: NDArray[np.uint8], *, training: bool) -> bytes:
    """Return a hash, 16 bytes, of everything that an image's evaluation pixels depend on.

    ``stored`` is uint8 (height, width, 3); if it is stored for ``training``, it will be resized for evaluation.
    """
    content, shape = np.ascontiguousarray(stored), str(stored.shape[:2]).encode()[:16]
    return hashlib.blake2b(content.data, digest_size=16, salt=shape, person=b"training" * training).digest()
