"""The prepared data set, ``data/prepared``: packed images, their splits and labels, and the manifest."""

import csv
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.core.io import existing, read_json
from headstart.core.paths import PREPARED
from headstart.core.storage import storage_message
from headstart.data.shards import Shards, Store, checksum, read_index, shard_path

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MANIFEST_COLUMNS = ("id", "source", "label", "split", "group", "sha256", "width", "height", "phash", "contrast")


@dataclass(frozen=True)
class PreparedDataset:
    """The packed images that ``prepare`` wrote, memory-mapped, without their labels.

    Rows are in the manifest's order. Images of validation and test are stored at the backbone's evaluation resize,
    before its crop; training images are larger, for random crops. An image's checksum is verified when this process
    first reads it. Memory: about 50 bytes an image, most of them the memory-mapped index.

    ``classes`` are in the order of the classifier's outputs; ``input`` is ``models.backbone.input_config``.
    """

    folder: Path
    classes: list[str]
    input: dict[str, Any]
    store: Store

    @classmethod
    def open(cls, folder: Path = PREPARED) -> "PreparedDataset":
        """Open the folder that ``prepare`` wrote; raises UserError if a file is missing, truncated or damaged."""
        dataset = read_json(folder / "dataset.json")
        for i, size in enumerate(dataset["shard_bytes"]):
            path = shard_path(folder, i)
            if not path.is_file() or path.stat().st_size != size:
                raise _damaged(path, f"is missing, or not of the {size} bytes that were written")
        if checksum(folder / "index.npy") != dataset["crc32"]["index.npy"]:
            raise _damaged(folder / "index.npy", "is missing or damaged")
        return cls(folder, dataset["classes"], dataset["input"], dataset["store"])

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """uint64 (n,), the image ids, which seed the augmentations."""
        return self._shards.index["id"]

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """int8 (n,), indices into ``SPLITS``."""
        return np.ascontiguousarray(self._shards.index["split"])

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the row numbers of a split."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Return one image, uint8 (height, width, 3), read-only; raises UserError if it is damaged."""
        try:
            return self._shards.pixels(row)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and storage_message(error) is not None:
                raise
            path = shard_path(self.folder, int(self._shards.index["shard"][row]))
            source = next(itertools.islice(manifest_rows(self.folder), row, None))["source"]
            raise _damaged(path, f"is damaged: the image {source} is not as it was stored") from error

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.folder, self.store, read_index(self.folder))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open files: a worker process opens its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _damaged(path: Path, what: str) -> UserError:
    """Return an error that explains how to restore a file; without ``touch`` DVC would not look at its content."""
    return UserError(
        f"{path} {what}. `chmod u+w {path}; touch {path}` makes DVC look at it again, then `dvc checkout --force "
        f"{path.parent}` gets it back from DVC's cache. If it is damaged there too, `rm -f {path}` and then `dvc repro "
        "-f prepare` decode its images again"
    )


def manifest_rows(folder: Path = PREPARED) -> Iterator[dict[str, str]]:
    """Stream the manifest, the single source of truth on images, splits and labels."""
    with existing(folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def read_labels(split: Split, folder: Path = PREPARED) -> NDArray[np.int64]:
    """Read the class numbers of a split's images, in the order of ``PreparedDataset.rows(split)``.

    Only ``evaluate`` reads those of the test split.
    """
    index = read_index(folder)
    return np.asarray(index["label"][index["split"] == SPLITS.index(split)], np.int64)


def read_groups(split: Split, folder: Path = PREPARED) -> NDArray[np.int64] | None:
    """Return a number for the group of each image of a split, int64 (n,); None where no image has a group.

    Groups are numbered in the order of their names, then images without one.
    """

    def names() -> Iterator[str]:
        return (row["group"] for row in manifest_rows(folder) if row["split"] == split)

    numbers = {name: number for number, name in enumerate(sorted(set(names()) - {""}))}
    without = itertools.count(len(numbers))
    return np.fromiter((numbers[name] if name else next(without) for name in names()), np.int64) if numbers else None


Scalar = TypeVar("Scalar", bound=np.generic)


def evenly(rows: NDArray[Scalar], most: int) -> NDArray[Scalar]:
    """Return at most ``most`` of the rows (n, ...), evenly spaced from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def data_sha256(prepared: PreparedDataset) -> str:
    """Hash the manifest, which has the content hash, label and split of every image."""
    with (prepared.folder / "manifest.csv").open("rb") as manifest:
        return hashlib.file_digest(manifest, "sha256").hexdigest()
