"""The prepared data set, ``data/prepared``: packed images, their splits and labels."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.paths import PREPARED
from headstart.core.storage import storage_message
from headstart.data.manifest import manifest_column, sources_and_splits
from headstart.data.shards import Shards, checksum, damaged, read_index, shard_path
from headstart.images.bands import Bands, Pixels
from headstart.targets.kinds import make_target
from headstart.targets.target import Target, Values

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
VALUES = "values.npy"
"""Float32 (n, …), of targets whose values are not one whole number an image, which the index has."""
SPEC_KEYS = ("input", "train_side", "store", "pillow", "pixels_version")
"""What determines the stored bytes beside the images and their splits: packed images are reused if it is the same."""


@dataclass(frozen=True)
class PreparedDataset:
    """The packed images that ``prepare`` wrote, memory-mapped, without their labels.

    Rows are in the manifest's order. Images of validation and test are stored at the backbone's evaluation resize,
    before its crop; training images are larger, for random crops. An image's checksum is verified when this process
    first reads it. Memory: about 50 bytes an image, most of them the memory-mapped index.

    ``target`` is what is learned of the images; ``spec`` is ``data.packing.store_spec``; ``sha256``, hex digits, is a
    hash of the manifest, and so of the content hash, label and split of every image. ``bands`` is None of 8-bit RGB.
    """

    folder: Path
    target: Target
    spec: dict[str, Any]
    sha256: str
    bands: Bands | None = None

    @classmethod
    def open(cls, folder: Path = PREPARED) -> "PreparedDataset":
        """Open the folder that ``prepare`` wrote; raises UserError if a file is missing, truncated or damaged."""
        dataset = read_json(folder / "dataset.json")
        if "target" not in dataset:
            raise UserError(f"{folder} is of an earlier version: run `dvc repro -f prepare`, which reuses its images")
        for i, size in enumerate(dataset["shard_bytes"]):
            path = shard_path(folder, i)
            if not path.is_file() or path.stat().st_size != size:
                raise damaged(path, f"is missing, or not of the {size} bytes that were written")
        for name, crc32 in dataset["crc32"].items():
            if checksum(folder / name) != crc32:
                raise damaged(folder / name, "is missing or damaged")
        spec = {key: dataset[key] for key in SPEC_KEYS}
        target = make_target(dataset["target"]["kind"], dataset["classes"], dataset["target"]["spec"])
        bands = Bands.of(dataset["bands"]) if dataset.get("bands") else None
        return cls(folder, target, spec, dataset["sha256"], bands)

    @property
    def classes(self) -> list[str]:
        """The names of the target's parts, in the order of its outputs."""
        return [*self.target.names]

    @property
    def input(self) -> dict[str, Any]:
        """The backbone's input: ``models.backbone.input_config``."""
        config: dict[str, Any] = self.spec["input"]
        return config

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

    def training_size(self) -> dict[str, Any]:
        """Return the target, the training images and the bytes that these take, as planning a training wants them."""
        sizes = self._shards.index["bytes"][self.splits == SPLITS.index("train")]
        return {"target": self.target, "train_images": len(sizes), "train_bytes": int(sizes.sum(dtype=np.int64))}

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Ask the kernel to read the images' bytes, without waiting for them; what is wrong ``pixels`` will tell."""
        with suppress(OSError, ValueError):
            self._shards.prefetch(rows.tolist())

    def pixels(self, row: int) -> Pixels:
        """Return one image, (height, width, bands), read-only; raises UserError if it is damaged."""
        try:
            return self._shards.pixels(row)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and storage_message(error) is not None:
                raise
            path = shard_path(self.folder, int(self._shards.index["shard"][row]))
            source = sources_and_splits([row], self.folder)[row][0]
            raise damaged(path, f"is damaged: the image {source} is not as it was stored") from error

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.folder, read_index(self.folder))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open files: a worker process opens its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def read_values(split: Split, folder: Path = PREPARED) -> Values:
    """Read the values of a split's images, as the target has them, in the order of ``PreparedDataset.rows(split)``.

    Only ``evaluate`` reads those of the test split.
    """
    index = read_index(folder)
    rows = index["split"] == SPLITS.index(split)
    if (folder / VALUES).exists():
        return np.asarray(np.load(folder / VALUES, mmap_mode="r")[rows])
    return np.asarray(index["label"][rows], np.int64)


def read_groups(split: Split, folder: Path = PREPARED) -> NDArray[np.int64] | None:
    """Return a number for the group of each image of a split, int64 (n,); None where no image has a group.

    Groups are numbered in the order of their names, then images without one.
    """
    of_split = read_index(folder)["split"] == SPLITS.index(split)

    def names() -> Iterator[str]:
        return itertools.compress(itertools.chain.from_iterable(manifest_column("group", folder)), of_split)

    numbers = {name: number for number, name in enumerate(sorted(set(names()) - {""}))}
    without = itertools.count(len(numbers))
    return np.fromiter((numbers[name] if name else next(without) for name in names()), np.int64) if numbers else None


Scalar = TypeVar("Scalar", bound=np.generic)


def evenly(rows: NDArray[Scalar], most: int) -> NDArray[Scalar]:
    """Return at most ``most`` of the rows (n, ...), evenly spaced from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
