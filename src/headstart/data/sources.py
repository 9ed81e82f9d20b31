"""Sources of images: folders of classes, CSV tables, scikit-learn's digits, and torchvision's data sets.

A new source is a class with what ``Source`` lists, and a case in ``open_source`` and in the pattern of
``prepare.source`` in ``config.schema``. scikit-learn and torchvision are imported only by the sources that use them.
"""

import csv
import difflib
import inspect
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from headstart.config.schema import PrepareConfig, RunConfig
from headstart.core.errors import UserError
from headstart.core.paths import cache_folder
from headstart.data.dataset import MANIFEST_COLUMNS, SPLITS, Split
from headstart.data.image_info import LabelledImage
from headstart.images.decode import BadImageError
from headstart.images.files import is_image_file, read_file, scan, walk

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class SourceItem:
    """An image as its source lists it, before it is read.

    Attributes:
        source: its name, unique in the source; of a file, its posix path relative to the source's folder.
        label: its class; None if only reading the image reveals it, or if it has none, as ``problem`` says.
        split: as the source assigns it.
        group: images of one group stay in one split.
        metadata: the values of the source's ``metadata_columns``.
        problem: why it is bad, if the listing already shows that.
    """

    source: str
    label: str | None
    split: Split | None = None
    group: str | None = None
    metadata: tuple[str, ...] = ()
    problem: str | None = None


class Source(Protocol):
    """Lists images, then reads each one by its name.

    Attributes:
        metadata_columns: names of further values that each image has, which the manifest keeps.
        in_memory: whether all pixels are in memory: pickling them to worker processes would cost more than it saves.
    """

    metadata_columns: Sequence[str] = ()
    in_memory: bool

    def images(self) -> Iterator[SourceItem]:
        """Yield the images in any order, without reading them; raises UserError."""

    def read(self, source: str) -> bytes | LabelledImage:
        """Read one image; raises BadImageError."""


class FileSource(Source):
    """Images that are files below a folder."""

    in_memory = False

    def __init__(self, root: Path) -> None:
        """Raise UserError if ``root`` is not a folder."""
        if not root.is_dir():
            raise UserError(f"prepare.path: {root} is not a folder: put your images there, or name another folder")
        self.root = root

    def read(self, source: str) -> bytes:
        """Return a file's bytes; raises BadImageError if it is not a regular file. Pipes and devices are not opened."""
        return read_file(self.root / source)


class ImageFolder(FileSource):
    """One folder per class, or the folders ``train``, ``val`` and ``test`` with one folder per class.

    Hidden files, Thumbs.db and desktop.ini are ignored; every other file in a class folder is taken for an image.
    """

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; raises UserError if the layout of the folders is ambiguous."""
        names = [name for name, is_folder, _ in scan(self.root) if is_folder]
        given = [name for name in names if name in SPLIT_NAMES]
        if not given:
            yield from self._classes("", None)
            return
        others = [name for name in names if name not in SPLIT_NAMES]
        if others:
            raise UserError(
                f"{self.root}: {', '.join(given)} look like splits, but beside them lies {others[0]!r}, which does not "
                f"({len(others)} such folders): keep either split folders or class folders there"
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
        """Yield the images of all class folders in the folder ``inside``."""
        for name, is_folder, problem in scan(self.root / inside):
            source = posixpath.join(inside, name)
            if problem:
                yield SourceItem(source, None, split, problem=problem)
            elif is_folder:
                file = None
                for file, file_problem in walk(self.root, source):
                    yield SourceItem(file, name, split, problem=file_problem)
                if file is None and split in (None, "train"):
                    raise UserError(f"{self.root / source}: the class folder holds no image: fill it or remove it")
            # Other files beside the class folders, such as notes and lists, are common and no problem.
            elif is_image_file(self.root / source) or (self.root / source).is_symlink():
                yield SourceItem(source, None, split, problem="lies in no class folder")


class CsvTable(FileSource):
    """A CSV table with the columns path and label, optionally split and group; the manifest keeps all other columns.

    Paths are relative to the folder and must stay inside it, since DVC watches that folder only.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Read the header; raises UserError if the file or a column is missing."""
        super().__init__(root)
        self.path = root / name
        self.header = next(self._lines(), (0, []))[1]
        missing = [column for column in ("path", "label") if column not in self.header]
        if missing:
            columns = ", ".join(self.header)
            raise UserError(f"{self.path}: no column {' and no column '.join(missing)} (the columns are {columns})")
        if len(set(self.header)) < len(self.header):
            raise UserError(f"{self.path}: two columns have one name")
        self.metadata_columns = [column for column in self.header if column not in ("path", "label", "split", "group")]
        clash = [column for column in self.metadata_columns if column in MANIFEST_COLUMNS]
        if clash:
            raise UserError(
                f"{self.path}: rename the column {clash[0]!r}: the manifest has its own column of this name"
            )

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; raises UserError that names the line that is wrong."""
        lines = self._lines()
        next(lines)
        has_splits: bool | None = None
        for number, values in lines:
            where = f"{self.path}, line {number}"
            if len(values) != len(self.header):
                raise UserError(f"{where}: {len(values)} values for {len(self.header)} columns")
            item = self._item(dict(zip(self.header, values, strict=True)), where)
            if has_splits not in (None, item.split is not None):
                raise UserError(
                    f"{where}: the split is {'missing' if has_splits else 'given'}, unlike in the lines before: "
                    "give it everywhere or nowhere"
                )
            has_splits = item.split is not None
            yield item

    def _item(self, row: dict[str, str], where: str) -> SourceItem:
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
        metadata = tuple(row[column] for column in self.metadata_columns)
        return SourceItem(path, row["label"], SPLIT_NAMES.get(split), row.get("group") or None, metadata)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the table's rows with their line numbers; empty lines are skipped."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                for values in reader:
                    if values:
                        yield reader.line_num, values
        except FileNotFoundError:
            message = f"prepare.source: {self.path} does not exist (the file's name is relative to prepare.path)"
            raise UserError(message) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path} is not a CSV table in UTF-8: {error}") from error


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey levels 0..16, scaled to uint8 0..255."""

    in_memory = True

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (slow to import, and only this source uses it)

        digits = load_digits()
        self._images, self._labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target

    def images(self) -> Iterator[SourceItem]:
        """Yield the digits, named ``digits/0000`` and so on."""
        for i, label in enumerate(self._labels):
            yield SourceItem(f"digits/{i:04d}", str(label))

    def read(self, source: str) -> LabelledImage:
        """Return a digit by its source name."""
        i = int(source.removeprefix("digits/"))
        return LabelledImage(Image.fromarray(self._images[i]), str(self._labels[i]))


class Torchvision(Source):
    """A classification data set of torchvision; its images are named ``NAME/split/number``."""

    def __init__(self, name: str, folder: Path) -> None:
        """Download the data set unless it is in the folder, which holds those of all data sets.

        Raises UserError: no such data set, it is not for classification, or its download failed.
        """
        self.name = name
        self._splits = _official_splits(name, folder)
        dataset = next(iter(self._splits.values()))
        data = getattr(dataset, "data", None)
        self.in_memory = isinstance(data, np.ndarray) or hasattr(data, "numpy")  # as CIFAR10 and MNIST are
        names = [name if isinstance(name, str) else ", ".join(name) for name in getattr(dataset, "classes", None) or ()]
        distinct = len(set(names)) == len(names)
        self._names = names if distinct else [f"{i} {name}" for i, name in enumerate(names)]

    def images(self) -> Iterator[SourceItem]:
        """Yield the images without labels: torchvision returns a label only with the decoded image."""
        for split, dataset in self._splits.items():
            given = SPLIT_NAMES["train" if split == "trainval" else split] if split != "all" else None
            for i in range(len(dataset)):
                yield SourceItem(f"{self.name}/{split}/{i:07d}", None, given)

    def read(self, source: str) -> LabelledImage:
        """Return an image and its label by its source name; raises BadImageError."""
        _, split, number = source.split("/")
        try:
            image, target = self._splits[split][int(number)]
        except Exception as error:  # noqa: BLE001  (torchvision's code, on files that may be damaged, raises anything)
            raise BadImageError(f"damaged: {error or type(error).__name__}") from None
        if not isinstance(image, Image.Image) or isinstance(target, tuple | list | dict):
            raise BadImageError(f"torchvision:{self.name} is not for image classification")
        return LabelledImage(image, self._names[int(target)] if self._names else str(int(target)))


def _dataset_class(name: str) -> Any:
    """Return the class of torchvision.datasets; raises UserError if there is none of this name."""
    from torchvision import datasets  # noqa: PLC0415  (slow to import, and only this source uses it)

    known = set(datasets.__all__) - {"FakeData", "ImageFolder", "DatasetFolder", "VisionDataset"}
    if name not in known:
        nearest = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "see torchvision.datasets"
        raise UserError(f"prepare.source: torchvision has no data set {name!r}; {hint}")
    return getattr(datasets, name)


def _official_splits(name: str, folder: Path) -> dict[str, Any]:
    """Create a data set for each of its official splits, or as ``all`` if it has none; raises UserError."""
    kind = _dataset_class(name)
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
            f"torchvision:{name} can't be downloaded ({error}). Run this once where the network is in reach and copy "
            f"{folder}, or put the files there as torchvision lays them out"
        ) from error
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"torchvision:{name} can't be read as an image classification data set: {error}") from error
    if "train" in splits:
        splits.pop("trainval", None)
    if not {"train", "trainval"} & set(splits):
        raise UserError(f"torchvision:{name} has no training split")
    return splits


def open_source(prepare: PrepareConfig, run: RunConfig) -> Source:
    """Open ``prepare.source``; raises UserError if it is missing or can't be read."""
    kind, _, name = prepare.source.partition(":")
    match kind:
        case "digits":
            return Digits()
        case "torchvision":
            return Torchvision(name, cache_folder(run.cache) / "torchvision")
        case "csv":
            return CsvTable(Path(prepare.path), name)
        case "imagefolder":
            return ImageFolder(Path(prepare.path))
    raise AssertionError(f"prepare.source: {kind} has no case here")
