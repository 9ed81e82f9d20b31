"""Every name on disk through which the stages meet, with its reader and its writer.

Names are relative to the project's folder, in which every stage runs. A file or folder appears under its final name
only when it is whole (``replacing``).
"""

import csv
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.ground.errors import UserError
from headstart.ground.shards import DamagedRowError, Shards, Store, checksum, read_index, shard_path

PREPARED = Path("data/prepared")
FEATURES = Path("data/features")
PROBE = Path("models/probe")
BASELINES = Path("models/baselines")
FINETUNE = Path("models/finetune")
EXPORT = Path("export")
REPORTS = Path("reports")

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MANIFEST_COLUMNS = ("id", "source", "label", "split", "group", "sha256", "width", "height", "phash", "contrast")


@contextmanager
def replacing(final: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Give a name beside ``final`` to write a file or a folder under; it takes the final name if all went well.

    What is there after a failure is removed, after a kill by the next run; where ``resumable``, it is left to that run.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.partial")
    if not resumable:
        _remove(aside)  # no two runs of a stage write at once, DVC sees to that
    try:
        yield aside
        if final.is_dir():
            _remove(final)
        aside.replace(final)
    finally:
        if not resumable:
            _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cache_folder(cache: str | None) -> Path:
    """Give the folder that outlives a stage's outputs and is shared by clones: ``run.cache``, or the user's own."""
    if cache is not None:
        return Path(cache).expanduser()
    from platformdirs import user_cache_path  # noqa: PLC0415  (only training installs it)

    return user_cache_path("headstart")


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read; NaN and infinity are refused."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what ``write_json`` wrote; raises UserError where it is missing."""
    return json.loads(existing(path).read_text(encoding="utf-8"))


def write_report(stage: str, content: dict[str, Any]) -> None:
    """Write ``reports/<stage>.json``, a stage's figures."""
    write_json(REPORTS / f"{stage}.json", content)


def write_table(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
    """Write a CSV table."""
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a small CSV table whole."""
    with existing(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def existing(path: Path) -> Path:
    """Give the path back; raises UserError where nothing is there."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run `dvc repro`, which makes what a stage reads")
    return path


@dataclass(frozen=True)
class Prepared:
    """The packed pictures that ``prepare`` wrote, memory-mapped, without their labels.

    Rows stand in the manifest's order. Pictures of validation and test are at the backbone's evaluation resize, before
    its crop; training pictures are larger, for random crops. A row is checked against its checksum when this process
    first reads it; about 50 bytes a picture are held in memory, most of them the memory-mapped index.

    Attributes:
        folder: where the pictures are.
        classes: the names of the classes, in the order of the classifier's outputs.
        input: timm's data config for the backbone: ``input_size`` (3, height, width), ``interpolation``, ``mean``,
            ``std``, ``crop_pct``, ``crop_mode``.
        store: how rows are packed.
    """

    folder: Path
    classes: list[str]
    input: dict[str, Any]
    store: Store

    @classmethod
    def open(cls, folder: Path = PREPARED) -> "Prepared":
        """Open the folder that ``prepare`` wrote; raises UserError where a file is missing, cut off or unreadable."""
        dataset = read_json(folder / "dataset.json")
        for i, size in enumerate(dataset["shard_bytes"]):
            path = shard_path(folder, i)
            if not path.is_file() or path.stat().st_size != size:
                raise _damaged(path, f"is missing, or not of the {size} bytes that it had")
        if checksum(folder / "index.npy") != dataset["crc32"]["index.npy"]:
            raise _damaged(folder / "index.npy", "is missing or damaged")
        return cls(folder, dataset["classes"], dataset["input"], dataset["store"])

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """uint64 (n,), a picture's name for the random numbers of its augmentation."""
        return self._shards.index["id"]

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """int8 (n,), indices into ``SPLITS``."""
        return np.ascontiguousarray(self._shards.index["split"])

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Give the row numbers of a split."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Give one picture, uint8 (height, width, 3), read-only; raises UserError where it is damaged."""
        try:
            return self._shards.pixels(row)
        except (DamagedRowError, OSError, ValueError) as error:
            path = shard_path(self.folder, int(self._shards.index["shard"][row]))
            source = next(itertools.islice(manifest_rows(self.folder), row, None))["source"]
            raise _damaged(path, f"is damaged: the picture {source} is not as it was stored") from error

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.folder, self.store, read_index(self.folder))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out: a worker process opens its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _damaged(path: Path, what: str) -> UserError:
    """Say what gets a file back; without the first step DVC trusts it, and its cache, unseen."""
    return UserError(
        f"{path} {what}. `chmod u+w {path}; touch {path}` makes DVC look at it again, then `dvc checkout --force "
        f"{path.parent}` gets it back from DVC's cache. If it is damaged there too, `rm -f {path}` and then `dvc repro "
        "-f prepare` decode anew what was in it"
    )


def manifest_rows(folder: Path = PREPARED) -> Iterator[dict[str, str]]:
    """Stream the manifest, the only truth on which pictures there are and on splits and labels."""
    with existing(folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def read_labels(split: Split, folder: Path = PREPARED) -> NDArray[np.int64]:
    """Read the class numbers of a split's pictures, in the order of ``Prepared.rows(split)``.

    Only ``evaluate`` reads those of the test split.
    """
    index = read_index(folder)
    return np.asarray(index["label"][index["split"] == SPLITS.index(split)], np.int64)


def write_features(rows: Iterator[NDArray[Any]], shape: tuple[int, int], dtype: str, about: dict[str, Any]) -> None:
    """Write one feature row a picture, in the manifest's order, and what made them; one row is in memory at a time."""
    with replacing(FEATURES) as aside:
        aside.mkdir()
        features = np.lib.format.open_memmap(aside / "features.npy", mode="w+", dtype=np.dtype(dtype), shape=shape)
        for place, row in zip(features, rows, strict=True):
            place[:] = row
        features.flush()
        write_json(aside / "features.json", about)


def read_features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the feature rows of the given pictures, float32 (n, width)."""
    features = np.load(existing(FEATURES / "features.npy"), mmap_mode="r")
    return np.asarray(features[rows], np.float32)


@dataclass(frozen=True)
class Head:
    """A linear head: ``weight`` float32 (classes, width), ``bias`` float32 (classes,), and the λ of its penalty."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    l2: float

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give X·Wᵀ + b, float32 (n, classes)."""
        return np.asarray(features @ self.weight.T + self.bias, np.float32)


def write_heads(path: Sequence[Head], chosen: int) -> None:
    """Write the heads along the probe's path of λ, and which of them was chosen."""
    from safetensors.numpy import save_file  # noqa: PLC0415  (a door that only reads JSON shall not need it)

    tensors = {name: np.stack([getattr(head, name) for head in path]) for name in ("weight", "bias")}
    with replacing(PROBE) as aside:
        aside.mkdir()
        save_file(tensors, aside / "heads.safetensors")
        write_json(aside / "heads.json", {"l2": [head.l2 for head in path], "chosen": chosen})


def read_head(least_l2: float = 0.0) -> Head:
    """Read the probe's chosen head, or if its λ is below ``least_l2`` the one whose λ is nearest to that."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    about = read_json(PROBE / "heads.json")
    tensors = load_file(existing(PROBE / "heads.safetensors"))
    i = about["chosen"]
    if about["l2"][i] < least_l2:
        i = int(np.abs(np.log(about["l2"]) - np.log(least_l2)).argmin())
    return Head(tensors["weight"][i], tensors["bias"][i], about["l2"][i])
