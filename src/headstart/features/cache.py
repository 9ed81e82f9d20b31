"""Features on disk: the stage's output ``data/features``, and a cache by image content.

With the cache, going back to an earlier backbone or data set needs no forward pass. It has one folder for each way of
computing features (weights, stored pixels, dtype), with files of some thousand rows, each written by the process that
computed them and under its final name once it is whole: what a killed run computed is kept.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from headstart.core.errors import UserError
from headstart.core.io import atomic_write, existing
from headstart.core.paths import CHANGED_FEATURES, FEATURE_ROWS, FEATURES
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data.manifest import manifest_column

logger = logging.getLogger(__name__)

KEY_BYTES = 16
KEYS = 2**16
"""Keys that are looked for at once."""
OPEN_FILES = 16
"""Files of the cache whose rows stay in memory, since the next rows are most often in one of them."""

ImageKeys = NDArray[np.uint64]
"""Of images, uint64 (n, 2): a hash of everything that their evaluation pixels depend on, beside ``store_spec``."""


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
    """A folder of feature rows, which any number of processes can use at once."""

    def __init__(self, folder: Path, key: dict[str, Any], width: int, dtype: DTypeLike) -> None:
        """Open the folder of ``key``, which has everything but the image that a row (width,) depends on."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder, self._width, self._dtype = folder / name[:32], width, np.dtype(dtype)
        self._rows_of = lru_cache(OPEN_FILES)(self._read_rows)
        self.refresh()

    def refresh(self) -> None:
        """Read which images have rows. A file that is damaged has none: the same one will be written anew."""
        self._first = self._second = np.empty(0, np.uint64)  # frees those of before, for the memory of many images
        self._order = np.empty(0, np.int64)
        self._rows_of.cache_clear()
        paths = sorted(self.folder.glob("*.safetensors"))
        # Room for as many keys as files of such sizes may have: to join arrays would take twice as much.
        most = sum(path.stat().st_size for path in paths) // (KEY_BYTES + self._width * self._dtype.itemsize)
        first, second = np.empty(most, np.uint64), np.empty(most, np.uint64)
        self._files, starts = list[Path](), [0]
        for path in paths:
            try:
                with safe_open(path, "numpy") as file:
                    keys = file.get_tensor("keys")
            except SafetensorError:
                logger.warning("%s is damaged: its features are computed again", path)
            else:
                of_file = slice(starts[-1], starts[-1] + len(keys))
                first[of_file], second[of_file] = keys.T
                self._files.append(path)
                starts.append(of_file.stop)
        self._starts = np.array(starts)
        self._first, self._second = first[: starts[-1]], second[: starts[-1]]
        self._order = np.argsort(self._first)

    def missing(self, keys: ImageKeys) -> NDArray[np.int64]:
        """Return the places of the keys without a row, in order, of equal keys the first."""
        is_missing = np.ones(len(keys), bool)
        for first in range(0, len(keys), KEYS):
            is_missing[first : first + KEYS] = self._places(keys[first : first + KEYS]) < 0
        missing = np.flatnonzero(is_missing)
        order = missing[np.argsort(keys[missing, 0], kind="stable")]
        for first in range(1, len(order), KEYS):
            later = order[first : first + KEYS]
            earlier = order[first - 1 : first - 1 + len(later)]
            is_missing[later[(keys[later] == keys[earlier]).all(axis=1)]] = False
        return np.flatnonzero(is_missing)

    def add(self, keys: ImageKeys, rows: NDArray[Any]) -> None:
        """Write a file with the rows (n, width) of n images; ``refresh`` finds it."""
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / f"{name}.safetensors") as temporary:
            save_file({"keys": keys, "rows": np.ascontiguousarray(rows, self._dtype)}, temporary)

    def rows(self, keys: ImageKeys) -> NDArray[Any]:
        """Return the rows (n, width) of n images; raises UserError where one is missing or damaged."""
        places = self._places(keys)
        if (places < 0).any():
            raise UserError(f"{self.folder} was changed while it was used: start again")
        files = np.searchsorted(self._starts, places, side="right") - 1
        rows = np.empty((len(keys), self._width), self._dtype)
        for file in np.unique(files):
            path, mine = self._files[file], files == file
            try:
                rows[mine] = self._rows_of(path)[places[mine] - self._starts[file]]
            except (OSError, SafetensorError, ValueError) as error:
                raise UserError(f"{path} is damaged: delete it, and its features are computed again") from error
        return rows

    def _places(self, keys: ImageKeys) -> NDArray[np.int64]:
        """Return the place of each image among those of all files one after the other; -1 where it is in none."""
        if not len(self._first):
            return np.full(len(keys), -1)
        at = np.searchsorted(self._first, keys[:, 0], sorter=self._order)
        while True:
            place = self._order[np.minimum(at, len(self._order) - 1)]
            same = (self._first[place] == keys[:, 0]) & (at < len(self._order))
            # The first halves of two hashes may be equal: then the second decides.
            further = same & (self._second[place] != keys[:, 1])
            if not further.any():
                return np.where(same, place, -1)
            at = at + further

    @staticmethod
    def _read_rows(path: Path) -> NDArray[Any]:
        with safe_open(path, "numpy") as file:
            rows: NDArray[Any] = file.get_tensor("rows")
            return rows


def image_keys(prepared: PreparedDataset) -> ImageKeys:
    """Return the key of every image: the first 16 bytes of its content's hash, and whether it is stored for training.

    Those of training are stored larger, and resized again for evaluation.
    """
    keys, done = np.empty((len(prepared.ids), 2), np.uint64), 0
    for hashes in manifest_column("sha256", prepared.folder):
        keys[done : done + len(hashes)] = hashes[:, :16].copy().view(np.uint64)
        done += len(hashes)
    last_bit = np.uint64(1)
    keys[:, 1] &= ~last_bit
    keys[:, 1] |= prepared.splits == SPLITS.index("train")
    return keys
