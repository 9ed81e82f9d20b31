"""Where images come from: what a source is, and the folders of classes.

An image's source name is its posix path relative to the source's folder. Hidden files, Thumbs.db and desktop.ini are
ignored; whatever else lies in a class folder is taken for an image.
"""

import csv
import difflib
import inspect
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torchvision import datasets

from headstart.config.schema import PrepareConfig, RunConfig
from headstart.core.errors import UserError
from headstart.core.paths import cache_folder
from headstart.data.dataset import MANIFEST_COLUMNS, SPLITS, Split
from headstart.data.image_info import LabelledImage
from headstart.images.decode import BadImageError
from headstart.images.files import (
    identity,
    is_folder,
    is_ignored,
    is_image_name,
    name_problem,
    read_file,
    shown,
    walk,
)

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class SourceItem:
    """An image as its source lists it.

    Attributes:
        source: its name, unique in the source.
        label: its class; None where only reading tells it, or where there is none and ``problem`` says so.
        split: as the source gives it, or None.
        group: images of one group stay in one split; or None.
        further: the values of the source's ``further_columns``.
        problem: why it is bad without its being read, or None.
    """

    source: str
    label: str | None
    split: Split | None = None
    group: str | None = None
    further: tuple[str, ...] = ()
    problem: str | None = None


class Source(Protocol):
    """Lists its images, then reads each by name, in other processes too if they are not in memory anyhow."""

    further_columns: Sequence[str] = ()
    in_memory: bool

    def images(self) -> Iterator[SourceItem]:
        """List the images in any order, holding none; raises UserError."""

    def read(self, source: str) -> bytes | LabelledImage:
        """Read one image; raises BadImageError."""


class Files(Source):
    """Reads images that are files below a folder."""

    in_memory = False

    def __init__(self, root: Path) -> None:
        """Keep the folder; raises UserError where it is none."""
        if not root.is_dir():
            raise UserError(f"prepare.path: {root} is not a folder: put your images there, or name another folder")
        self.root = root

    def read(self, source: str) -> bytes:
        """Read a file's bytes; raises BadImageError for what is no file. A pipe or a device is never opened."""
        return read_file(self.root / source)


class ImageFolder(Files):
    """One folder a class, or ``train``, ``val`` and ``test`` of class folders."""

    def images(self) -> Iterator[SourceItem]:
        """List the images; raises UserError where the folders can't be understood."""
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry))
        given = [name for name in names if name in SPLIT_NAMES]
        if not given:
            yield from self._classes("", None)
            return
        others = [name for name in names if name not in SPLIT_NAMES]
        if others:
            raise UserError(
                f"{self.root}: {', '.join(given)} look like splits, but beside them lies {others[0]!r}, which is none "
                f"(of {len(others)} such): keep either split folders or class folders there"
            )
        splits = [SPLIT_NAMES[name] for name in given]
        if len(set(splits)) < len(splits) or "train" not in splits:
            raise UserError(
                f"{self.root} has the split folders {', '.join(given)}: there must be train, "
                "and at most one of val, valid and validation"
            )
        for name in given:
            yield from self._classes(name, SPLIT_NAMES[name])

    def _classes(self, inside: str, split: Split | None) -> Iterator[SourceItem]:
        """List the images of all class folders in a folder."""
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                name, problem = shown(entry.name), name_problem(entry)
                source = posixpath.join(inside, name)
                if is_ignored(entry.name):
                    continue
                if problem:
                    yield SourceItem(source, None, split, problem=problem)
                elif not is_folder(entry):
                    # Notes and lists beside the class folders are common, and are nobody's images.
                    if is_image_name(name) or entry.is_symlink():
                        yield SourceItem(source, None, split, problem="lies in no class folder")
                else:
                    empty = True
                    for below, trouble in walk(self.root, source, frozenset({identity(self.root)})):
                        empty = False
                        yield SourceItem(below, name, split, problem=trouble)
                    if empty and split in (None, "train"):
                        raise UserError(f"{self.root / source}: the class folder holds no image: fill it or remove it")


class CsvTable(Files):
    """A table with the columns path and label, and if there are any split, group and others, which are kept.

    Paths are relative to the folder and stay inside it: DVC watches that folder, and no other.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Read the header; raises UserError where the file or a column is missing."""
        super().__init__(root)
        self.name = name
        self.header = next(self._lines(), (0, []))[1]
        missing = [column for column in ("path", "label") if column not in self.header]
        if missing:
            raise UserError(
                f"{root / name}: no column {' and no column '.join(missing)} (the columns are {', '.join(self.header)})"
            )
        if len(set(self.header)) < len(self.header):
            raise UserError(f"{root / name}: two columns have one name")
        self.further_columns = [column for column in self.header if column not in ("path", "label", "split", "group")]
        clash = [column for column in self.further_columns if column in MANIFEST_COLUMNS]
        if clash:
            raise UserError(
                f"{root / name}: rename the column {clash[0]!r}: the manifest has one of its own with this name"
            )

    def images(self) -> Iterator[SourceItem]:
        """List the images; raises UserError naming the line that is wrong."""
        lines = self._lines()
        next(lines)
        whether_split: bool | None = None
        for number, values in lines:
            where = f"{self.root / self.name}, line {number}"
            if len(values) != len(self.header):
                raise UserError(f"{where}: {len(values)} values for {len(self.header)} columns")
            row = dict(zip(self.header, values, strict=True))
            picture = self._image(row, where)
            if whether_split is None:
                whether_split = picture.split is not None
            elif whether_split != (picture.split is not None):
                raise UserError(
                    f"{where}: the split is {'missing' if whether_split else 'given'}, unlike before: "
                    "give it everywhere or nowhere"
                )
            yield picture

    def _image(self, row: dict[str, str], where: str) -> SourceItem:
        path, split = posixpath.normpath(row["path"]), row.get("split", "")
        if not row["path"] or not row["label"]:
            raise UserError(f"{where}: the {'label' if row['path'] else 'path'} is empty")
        if path.startswith(("/", "../")) or path == "..":
            raise UserError(
                f"{where}: {row['path']} is not inside {self.root}, the folder that DVC watches: "
                "write it relative to that folder, and move the image or prepare.path"
            )
        if split and split not in SPLIT_NAMES:
            raise UserError(f"{where}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        further = tuple(row[column] for column in self.further_columns)
        return SourceItem(path, row["label"], SPLIT_NAMES.get(split), row.get("group") or None, further)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Read the table's rows, each with the number of its line; empty lines are passed over."""
        path = self.root / self.name
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                for values in reader:
                    if values:
                        yield reader.line_num, values
        except FileNotFoundError:
            raise UserError(
                f"prepare.source: {path} does not exist (the file's name is relative to prepare.path)"
            ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a CSV table in UTF-8: {error}") from error


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey values 0..16, which become uint8 0..255."""

    in_memory = True

    def __init__(self) -> None:
        """Load them from the installed package."""
        from sklearn.datasets import load_digits  # noqa: PLC0415  (slow to import, and only this source needs it)

        digits = load_digits()
        self._images, self._labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target

    def images(self) -> Iterator[SourceItem]:
        """List the digits, ``digits/0000`` and on."""
        for i, label in enumerate(self._labels):
            yield SourceItem(f"digits/{i:04d}", str(label))

    def read(self, source: str) -> LabelledImage:
        """Return a digit by its source name."""
        i = int(source.removeprefix("digits/"))
        return LabelledImage(Image.fromarray(self._images[i]), str(self._labels[i]))


class Torchvision(Source):
    """A classification data set of torchvision; an image's source name is ``NAME/split/number``."""

    def __init__(self, name: str, folder: Path) -> None:
        """Download the data set where it is not in the folder yet.

        Args:
            name: of a class in torchvision.datasets.
            folder: for the downloads of all data sets.

        Raises:
            UserError: no such data set, one that is not for classification, or a download that failed.
        """
        self.name = name
        self._splits = _official_splits(_class_named(name), name, folder)
        some = next(iter(self._splits.values()))
        # CIFAR10 and its like hold all pixels: sending them to worker processes would cost more than the work.
        self.in_memory = isinstance(getattr(some, "data", None), np.ndarray) or hasattr(
            getattr(some, "data", None), "numpy"
        )
        self._names = _class_names(getattr(some, "classes", None))

    def images(self) -> Iterator[SourceItem]:
        """List the images, without labels: to ask for one is to decode its image."""
        for split, dataset in self._splits.items():
            given = SPLIT_NAMES["train" if split == "trainval" else split] if split != "all" else None
            for i in range(len(dataset)):
                yield SourceItem(f"{self.name}/{split}/{i:07d}", None, given)

    def read(self, source: str) -> LabelledImage:
        """Return an image and its label by its source name; raises BadImageError."""
        _, split, number = source.split("/")
        try:
            image, target = self._splits[split][int(number)]
        except Exception as error:  # noqa: BLE001  (a data set's own code, on files that may be damaged)
            raise BadImageError(f"damaged: {error or type(error).__name__}") from None
        if not isinstance(image, Image.Image) or isinstance(target, tuple | list | dict):
            raise BadImageError(f"torchvision:{self.name} is no classification of images")
        return LabelledImage(image, self._names[int(target)] if self._names else str(int(target)))


def _class_named(name: str) -> Any:
    known = [
        each for each in datasets.__all__ if each not in ("FakeData", "ImageFolder", "DatasetFolder", "VisionDataset")
    ]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "see torchvision.datasets"
        raise UserError(f"prepare.source: torchvision has no data set {name!r}; {hint}")
    return getattr(datasets, name)


def _official_splits(kind: Any, name: str, folder: Path) -> dict[str, Any]:
    """Build every official split; ``all`` where there are none."""
    takes = inspect.signature(kind).parameters
    download = {"download": True} if "download" in takes else {}
    try:
        if "train" in takes:
            return {split: kind(folder, train=split == "train", **download) for split in ("train", "test")}
        if "split" not in takes:
            return {"all": kind(folder, **download)}
        splits: dict[str, Any] = {}
        for split in ("train", "trainval", "val", "valid", "test"):
            try:
                splits[split] = kind(folder, split=split, **download)
            except ValueError as error:
                if "split" not in str(error).lower():
                    raise
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{name} can't be had ({error}). Run this once where the network is in reach and copy "
            f"{folder}, or put the files there as torchvision lays them out"
        ) from error
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"torchvision:{name} can't be read as a classification of images: {error}") from error
    if "train" in splits:
        splits.pop("trainval", None)
    if not {"train", "trainval"} & set(splits):
        raise UserError(f"torchvision:{name} has no training split")
    return splits


def _class_names(classes: Any) -> list[str]:
    """Write the classes' names as strings, none twice; nothing where the data set has none."""
    names = [each if isinstance(each, str) else ", ".join(each) for each in classes or ()]
    return names if len(set(names)) == len(names) else [f"{i} {name}" for i, name in enumerate(names)]


def open_source(prepare: PrepareConfig, run: RunConfig) -> Source:
    """Open ``prepare.source``; raises UserError where it can't be had."""
    kind, _, name = prepare.source.partition(":")
    match kind:
        case "digits":
            return Digits()
        case "torchvision":
            return Torchvision(name, cache_folder(run.cache) / "torchvision")
        case "csv":
            return CsvTable(Path(prepare.path), name)
        case _:
            return ImageFolder(Path(prepare.path))
