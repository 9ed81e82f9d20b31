"""Sources of images: folders of classes, CSV tables, scikit-learn's digits, and torchvision's data sets.

A new source is a class with what ``Source`` lists, and a case in ``open_source`` and in the pattern of
``prepare.source`` in ``config.schema``. Those that hold many images a file are in ``webdataset`` and ``parquet``.
scikit-learn, torchvision, pyarrow and fsspec are imported only by the sources that use them.
"""

import difflib
import inspect
import itertools
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from headstart.config.schema import PrepareConfig, RunConfig
from headstart.config.writer import inline_yaml
from headstart.core.errors import UserError
from headstart.core.paths import cache_folder
from headstart.core.problems import some
from headstart.core.text import normalize_label
from headstart.data.archives import Archives
from headstart.data.band_files import BandFiles, join_names, read_each, split_names
from headstart.data.dataset import SPLITS, Split
from headstart.data.image_info import LabelledImage
from headstart.data.manifest import MANIFEST_COLUMNS
from headstart.data.names import mentioned_split, split_of
from headstart.data.parquet import ParquetFiles
from headstart.data.remote import RemoteFile, check_lock, is_url, list_files, read_url, write_lock
from headstart.data.source_item import Source, SourceItem
from headstart.data.tables import FolderPaths, TableFile, find_column
from headstart.data.watched import WatchedFiles
from headstart.data.webdataset import WebDataset
from headstart.images.decode import BadImageError
from headstart.images.files import counted, is_ignored, is_image_file, is_image_name, read_file, scan, walk
from headstart.targets import kinds
from headstart.targets.cells import CellError
from headstart.targets.classes import ClassesReader
from headstart.targets.target import MakeReader, Reader

TABLE_COLUMNS = ("path", "label", "split", "group")
PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path")
"""What the column with the paths is called; the first of them that is there."""
LOCK_NAME = "source.lock"
NO_FILE = "there is no such file"
BREAKS = re.compile("[\0\r\n]")

CLASSES = ClassesReader(["label"])

logger = logging.getLogger(__name__)


class FileSource(Source):
    """Images that are files below a folder."""

    root: Path

    def __init__(self, root: Path, reader: Reader = CLASSES) -> None:
        """Raise UserError if ``root`` is not a folder."""
        if not root.is_dir():
            raise UserError(f"prepare.path: {root} is not a folder: put your images there, or name another folder")
        self.root, self.reader = root, reader

    def read(self, source: str) -> bytes | tuple[bytes, ...]:
        """Return a file's bytes; raises BadImageError if it is not a regular file. Pipes and devices are not opened."""
        return read_file(self.root / source)


class ImageFolder(FileSource):
    """One folder per class, or a folder per split with one folder per class in it.

    A single folder around all of them is passed through. Hidden files, Thumbs.db and what else file browsers leave are
    ignored; every other file in a class folder is taken for an image.
    """

    def __init__(self, root: Path, split_folders: Mapping[str, str] | None = None, reader: Reader = CLASSES) -> None:
        """Open the folder; ``split_folders`` is ``prepare.split_folders``. Raises UserError if it is not a folder."""
        super().__init__(root, reader)
        self.split_folders, self._watched = split_folders, WatchedFiles(root)

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; raises UserError if the layout of the folders is ambiguous, or DVC does not watch one."""
        top = self._innermost("", None)
        if top:
            logger.info("the classes are those in %s, its only folder", self._where(top))
        splits = self._splits(top)
        try:
            if not splits:
                yield from self._classes(top, None)
            for name, split in splits.items():
                yield from self._classes(self._innermost(posixpath.join(top, name), split), split)
        except OSError as error:
            raise UserError(f"prepare.path: {error.filename} can't be read: {error.strerror}") from error

    def _scan(self, inside: str) -> Iterator[tuple[str, bool, str | None]]:
        """Yield a folder's entries, as ``images.files.scan`` does."""
        return scan(self.root / inside)

    def _walk(self, inside: str) -> Iterator[tuple[str, str | None]]:
        """Yield the files below a folder, as ``images.files.walk`` does, each of them watched by DVC."""
        for file, problem in walk(self.root, inside):
            self._watched.check(file)
            yield file, problem

    def _check_folder(self, inside: str) -> None:
        """Raise UserError if DVC does not look into a folder."""
        self._watched.check_folder(inside)

    def _looks_like_image(self, inside: str, others: Counter[str]) -> bool:
        """Return whether a file is an image by its name or content; count it by its kind if not."""
        return is_image_file(self.root / inside, others)

    def _where(self, inside: str) -> str:
        """Return a file or folder as messages name it."""
        return str(self.root / inside)

    def _contents(self, inside: str) -> tuple[list[str], int]:
        """Return the names of the folders in a folder, and the number of images beside them, if it is readable."""
        entries: list[tuple[str, bool]] = []
        with suppress(OSError):
            entries = [(name, is_folder) for name, is_folder, problem in self._scan(inside) if not problem]
        images = sum(not is_folder and is_image_name(name) for name, is_folder in entries)
        return [name for name, is_folder in entries if is_folder], images

    def _innermost(self, inside: str, split: Split | None) -> str:
        """Return a folder, or the one in it that does nothing but hold it all, as in the contents of many zip files."""
        folders, images = self._contents(inside)
        if len(folders) != 1 or images:
            return inside
        below = posixpath.join(inside, folders[0])
        if split is not None:
            passes = split_of(folders[0]) == split or folders[0] == posixpath.basename(inside)
        else:  # one class alone is no data set
            is_split = bool(split_of(folders[0])) if self.split_folders is None else folders[0] in self.split_folders
            inner, images = self._contents(below)
            passes = len(inner) > images and not is_split
        return self._innermost(below, split) if passes else inside

    def _splits(self, top: str) -> dict[str, Split]:
        """Return the split of each folder in ``top``, none if these are classes; raises UserError if it is unclear."""
        where, names = self._where(top), self._contents(top)[0]
        if self.split_folders is not None:
            return self._named_splits(where, names, self.split_folders)
        given = {name: split for name in names if (split := split_of(name))}
        others = [name for name in names if name not in given]
        shared = [] if given else self._shared_names(top, names)
        named = [] if given else [name for name in names if mentioned_split(name)]
        if shared and all(map(split_of, shared)):
            raise UserError(
                f"{where}: the splits {some(shared)} lie in the class folders: put these into them "
                f"({shared[0]}/{names[0]}), or set prepare.split_folders: {{}} to draw splits instead"
            )
        if shared:
            first = max(names, key=lambda name: "train" in name.casefold())  # of Testdaten and Trainingsdaten
            raise UserError(
                f"{where}: {some(names, 3)} hold folders of the same names ({some(shared, 3)}), as splits do: say what "
                f"each is by prepare.split_folders: {{{inline_yaml(first)}: train, …}}, or that all are classes by "
                "prepare.split_folders: {}"
            )
        if {"train"} < set(map(mentioned_split, named)):
            raise UserError(
                f"{where}: {some(named, 3)} are called as splits are: say what each folder is by "
                f"prepare.split_folders: {{{inline_yaml(named[0])}: {mentioned_split(named[0])}, …}}, or that all are "
                "classes by prepare.split_folders: {}"
            )
        if given and others:
            raise UserError(
                f"{where}: {', '.join(given)} look like splits, but beside them lies {others[0]!r}, which does not "
                f"({len(others)} such folders): move either elsewhere, say what each is by prepare.split_folders: "
                f"{inline_yaml(given)[:-1]}, …}}, or that all are classes by prepare.split_folders: {{}}"
            )
        if given and "train" not in given.values():
            raise UserError(
                f"{where} has the split folders {', '.join(given)}: there must be train: add it, or, if they are "
                "classes, set prepare.split_folders: {}"
            )
        if len(set(given.values())) < len(given):
            raise UserError(
                f"{where} has the split folders {', '.join(given)}: there must be at most one of val, valid and "
                "validation, or of the names of another split: rename or join them, or say that this is meant by "
                f"prepare.split_folders: {inline_yaml(given)}"
            )
        return given

    def _named_splits(self, where: str, names: Sequence[str], named: Mapping[str, str]) -> dict[str, Split]:
        """Return the folders with the splits that ``prepare.split_folders`` names; raises UserError if they differ."""
        wanted = {normalize_label(name): split_of(split) for name, split in named.items()}
        given = {name: split for name in names if (split := wanted.get(normalize_label(name)))}
        problem = None
        if absent := wanted.keys() - set(map(normalize_label, given)):
            problem = f"{where} has no folder {min(absent)!r}, only {some(names)}"
        elif given and (others := [name for name in names if name not in given]):
            problem = f"{some(others)} in {where} is not named: give it a split too, or move it elsewhere"
        elif given and "train" not in given.values():
            problem = "no folder is train: name one"
        if problem:
            raise UserError(f"prepare.split_folders: {problem}")
        return given

    def _shared_names(self, top: str, names: Sequence[str]) -> list[str]:
        """Return the names that the folders in ``top`` share, none unless they look like splits of unknown names.

        Splits hold hardly more than folders: two or more of these in several of them, on average in over two thirds.
        """
        counts = Counter[str]()
        for name in names:
            folders, images = self._contents(posixpath.join(top, name))
            if len(folders) <= images:
                return []
            counts.update({normalize_label(folder).casefold() for folder in folders})
        shared = sorted(name for name, count in counts.items() if count > 1)
        return shared if len(shared) > 1 and counts.total() > 2 / 3 * len(names) * len(counts) else []

    def _classes(self, inside: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield the images of all class folders in the folder ``inside``."""
        self._check_folder(inside)
        names, joined = dict[str, str](), list[str]()
        if not self._contents(inside)[0]:
            self._without_classes(inside, split)
            return
        for name, is_folder, problem in self._scan(inside):
            source = posixpath.join(inside, name)
            if problem:
                yield SourceItem(source, None, split, problem=problem)
            elif is_folder:
                label = normalize_label(name)
                if names.setdefault(label, name) != name:
                    joined.append(f"{name!a} is {names[label]!a}")
                yield from self._class(source, label, split)
            # Other files beside the class folders, such as notes and lists, are common and no problem.
            elif is_image_name(name) or self._is_link(source):
                yield SourceItem(source, None, split, problem="lies in no class folder")
        if joined:
            logger.info("%s: one class each: %s", self._where(inside), some(joined))

    def _is_link(self, inside: str) -> bool:
        return (self.root / inside).is_symlink()

    def _class(self, inside: str, label: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield the images of a class folder."""
        if not label:
            raise UserError(f"{self._where('')}: the name of the class folder {inside!a} is blank: rename it")
        self._check_folder(inside)
        try:
            text = self.reader.read([label])
        except CellError as error:
            raise UserError(f"{self._where(inside)}: the name of the folder: {error}") from None
        file = None
        for file, problem in self._walk(inside):
            yield SourceItem(file, text, split, problem=problem)
        if file is None and split in (None, "train"):
            raise UserError(f"{self._where(inside)}: the class folder holds no image: fill it or remove it")

    def _without_classes(self, inside: str, split: Split | None) -> None:
        """Log that a folder of images without labels is left out; raises UserError if it should be trained on."""
        others, where = Counter[str](), self._where(inside)
        names = [posixpath.join(inside, name) for name, _, _ in self._scan(inside)]
        images = sum(self._looks_like_image(name, others) for name in names)
        if not images and not others:
            return
        if split in (None, "train"):
            found = f"{images:,} images" if images else counted(others)
            raise UserError(
                f"{where}: {found} and no class folder: make one folder per class, or list the images with their "
                "labels in a table (prepare.source: csv:FILE)"
            )
        text = (
            "%s: %s images in no class folder are left out, since they have no labels; `headstart predict` takes them"
        )
        logger.info(text, where, f"{images:,}")


class RemoteImageFolder(ImageFolder):
    """One folder per class, as ``ImageFolder`` has it, behind a URL."""

    def __init__(self, lock: Path, source: str, split_folders: Mapping[str, str] | None, reader: Reader) -> None:
        """Name the folder; nothing is listed yet. ``lock`` is ``prepare.path``."""
        self.reader = reader
        self._lock, self._source, self._url = lock, source, source.partition(":")[2].rstrip("/")
        self.split_folders = split_folders
        self._folders: dict[str, dict[str, bool]] = {}

    def list_remote(self) -> list[RemoteFile]:
        """Return all files below the folder; raises UserError if there is none."""
        files = list_files([f"{self._url}/**"])
        if not files:
            raise UserError(f"prepare.source: nothing lies below {self._url}")
        return files

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; raises UserError if the layout is ambiguous, or the files are not as the lock has them."""
        for file in check_lock(self._lock, self._source, self.list_remote):
            path = PurePosixPath(file.url.removeprefix(f"{self._url}/"))
            if not any(is_ignored(part) for part in path.parts):
                for inner, outer in itertools.pairwise([path, *path.parents]):
                    folder = "" if str(outer) == "." else str(outer)
                    self._folders.setdefault(folder, {})[inner.name] = inner != path
        return super().images()

    def read(self, source: str) -> bytes:
        """Return a file's bytes; raises BadImageError, and UserError if the network fails."""
        return read_remote(f"{self._url}/{source}")

    def _scan(self, inside: str) -> Iterator[tuple[str, bool, str | None]]:
        for name, is_folder in sorted(self._folders.get(inside, {}).items()):
            yield name, is_folder, None

    def _walk(self, inside: str) -> Iterator[tuple[str, str | None]]:
        for name, is_folder, _ in self._scan(inside):
            path = posixpath.join(inside, name)
            yield from self._walk(path) if is_folder else [(path, None)]

    def _check_folder(self, inside: str) -> None:
        """Do nothing: the lock has every file."""

    def _looks_like_image(self, inside: str, others: Counter[str]) -> bool:
        if not is_image_name(inside):
            others[PurePosixPath(inside).suffix or "unknown"] += 1
        return is_image_name(inside)

    def _is_link(self, inside: str) -> bool:  # noqa: ARG002  (nothing is one)
        return False

    def _where(self, inside: str) -> str:
        return posixpath.join(self._url, inside) if inside else self._url


class CsvTable(FileSource):
    """A CSV table with the columns path and label, optionally split and group; the manifest keeps all other columns.

    The column path may be called by another of ``PATH_COLUMNS``; label stands for the columns of the target.

    Commas, semicolons, tabs or bars separate the values, as the header shows; it is UTF-8, or UTF-16 with its byte
    order mark. Paths are relative to the folder and must stay inside it, since DVC watches that folder only; or URLs,
    for which there may be a lock.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        make_reader: MakeReader = ClassesReader,
        target_columns: Sequence[str] = ("label",),
        band_columns: Sequence[str] = (),
    ) -> None:
        """Read the header; raises UserError if the file or a column is missing.

        ``band_columns`` have the paths of the files with an image's bands, instead of ``path`` that of its one file.
        """
        super().__init__(root, make_reader(target_columns))
        self._paths, self._watched = FolderPaths(root), WatchedFiles(root)
        inside = self._paths.inside(name)
        if inside is None:
            raise UserError(f"prepare.source: {name} is not inside {root}, the folder that DVC watches: move it there")
        self.path, self._name, self._file = root / inside, inside, TableFile(root / inside, target_columns)
        header = [name.strip() for name in next(self._file.lines(), (0, []))[1]]
        self.header = [name.casefold() if name.casefold() in TABLE_COLUMNS else name for name in header]
        lower = [name.casefold() for name in header]
        named = [name for name in PATH_COLUMNS if name in lower and not band_columns]
        if named:
            self.header[lower.index(named[0])] = "path"
        if twice := [column for column, count in Counter(filter(None, self.header)).items() if count > 1]:
            raise UserError(f"{self.path}: two columns have one name, {twice[0]}: rename one of them")
        columns = [find_column(column, self.header) for column in target_columns]
        self._path_columns = [find_column(column, self.header) or "" for column in band_columns] or ["path"]
        missing = [
            *(() if named or band_columns else ("path",)),
            *(c for c, found in zip(band_columns, self._path_columns, strict=False) if not found),
            *(c for c, found in zip(target_columns, columns, strict=True) if not found),
        ]
        self.reader = make_reader([column for column in columns if column])
        if missing:
            names = some(name if name.isprintable() else repr(name) for name in header) or "none"
            is_target = set(missing) <= {*target_columns}
            advice = "name yours in prepare.target_columns" if is_target else "the first line must name the columns"
            example = "" if is_target else f", as in {','.join(['path', *target_columns])}"
            raise UserError(
                f"{self.path}: no column {' and no column '.join(missing)} (the columns are {names}): {advice}{example}"
            )
        taken = {*self._path_columns, "split", "group", *self.reader.columns, ""}
        self.metadata_columns = [column for column in self.header if column not in taken]
        clash = [column for column in self.metadata_columns if column in MANIFEST_COLUMNS]
        if clash:
            raise UserError(
                f"{self.path}: rename the column {clash[0]!r}: the manifest has its own column of this name"
            )

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; raises UserError that names the line that is wrong."""
        self._watched.check(self._name)
        self._check_lock()
        lines = self._file.lines()
        _, header = next(lines)
        has_splits: bool | None = None
        rows, absent, first = 0, 0, ""
        said = [set[Split | None]() for _ in self.metadata_columns]  # of a column that no header calls split
        for number, values in lines:
            if [value.lstrip("\ufeff") for value in values] == header:  # of a table that was joined to this one
                continue
            where = f"{self.path}, line {number}"
            if len(values) < len(self.header) or any(values[len(self.header) :]):
                raise UserError(
                    f"{where}: {len(values)} values for {len(self.header)} columns: quote values that hold a separator"
                )
            item = self._item(dict(zip(self.header, values, strict=False)), where)
            if has_splits not in (None, item.split is not None):
                raise UserError(
                    f"{where}: the split is {'missing' if has_splits else 'given'}, unlike in the lines before: "
                    "give it everywhere or nowhere"
                )
            has_splits, rows = item.split is not None, rows + 1
            absent, first = absent + (item.problem == NO_FILE), first or item.source
            for splits, value in zip(said, item.metadata, strict=True):
                if None not in splits:
                    splits.add(split_of(value))
            yield item
        for column, splits in zip(self.metadata_columns, said, strict=True):
            if {"train"} < splits and None not in splits and not has_splits:
                raise UserError(
                    f"{self.path}: the column {column!r} holds splits, which are read from split alone: rename it to "
                    "that, or remove it to have splits drawn"
                )
        if rows and absent == rows:
            raise UserError(
                f"{self.path}: none of its {rows:,} rows names a file; the first would be {self.root / first}: write "
                f"the paths relative to {self.root}, or change prepare.path"
            )

    def _item(self, row: dict[str, str], where: str) -> SourceItem:
        for column in (*self._path_columns, "split", "group", *self.reader.columns):
            if BREAKS.search(row.get(column, "")):
                raise UserError(f"{where}: a line break or a NUL byte in the {column}: is a quote not closed there?")
        group, problem, label = normalize_label(row.get("group", "")), None, None
        sources, missing = self._sources(row, where)
        try:
            label = self.reader.read([row[column] for column in self.reader.columns])
        except CellError as error:
            problem = str(error.at(f"line {where.rpartition(' ')[2]}"))
        split = split_of(row.get("split", ""))
        if row.get("split", "").strip() and split is None:
            raise UserError(f"{where}: unknown split {row['split']!r}; known: {', '.join(SPLITS)}")
        metadata = tuple(row[column] for column in self.metadata_columns)
        if missing and not problem:
            problem = NO_FILE if len(missing) == len(sources) else f"{NO_FILE}: {some(missing)}"
        name = sources[0] if self._path_columns == ["path"] else join_names(sources)
        return SourceItem(name, label, split, group or None, metadata, problem)

    def _sources(self, row: dict[str, str], where: str) -> tuple[list[str], list[str]]:
        """Return the sources of a row's files, and which of them are not there; raises UserError."""
        sources, missing = list[str](), list[str]()
        for column in self._path_columns:
            path = row[column]
            if not path.strip():
                raise UserError(f"{where}: the {column} is empty")
            source, is_there = self._locate(path)
            if source is None:
                advice = "write it relative to that folder, and move the image or prepare.path"
                raise UserError(f"{where}: {path} is not inside {self.root}, the folder that DVC watches: {advice}")
            if is_there and not is_url(source) and self._paths.is_folder(source):
                raise UserError(f"{where}: {path} is a folder: the column {column} must name files")
            if not is_url(source):
                self._watched.check(source)
            sources.append(source)
            if not is_there:
                missing.append(source)
        return sources, missing

    def _locate(self, path: str) -> tuple[str | None, bool]:
        """Return a row's source, None if it is outside the folder, and whether it is there; of a URL reading tells."""
        return (path.strip(), True) if is_url(path.strip()) else self._paths.locate(path)

    def read(self, source: str) -> bytes | tuple[bytes, ...]:
        """Return a file's bytes, also behind a URL; raises BadImageError, and UserError for a network that fails.

        Of an image with several files, return those of each.
        """
        if self._path_columns == ["path"]:
            return self._read_file(source)
        return read_each(split_names(source), self._read_file)

    def _read_file(self, source: str) -> bytes:
        return read_remote(source) if is_url(source) else read_file(self.root / source)

    @property
    def lock(self) -> Path:
        """Where `headstart lock-source` writes what lies behind the URLs: in the folder that DVC watches."""
        return self.root / LOCK_NAME

    def list_remote(self) -> list[RemoteFile]:
        """Return what lies behind the URLs of the table, none if it has none; raises UserError."""
        columns = [self.header.index(column) for column in self._path_columns]
        rows = (values for _, values in self._file.lines() if len(values) > max(columns))
        return list_files(filter(is_url, (values[column].strip() for values in rows for column in columns)))

    def _check_lock(self) -> None:
        if self.lock.exists():
            check_lock(self.lock, f"csv:{self._name}", self.list_remote)


def read_remote(url: str) -> bytes:
    """Return the bytes behind a URL; raises BadImageError if nothing is there, and UserError if the network fails."""
    try:
        return read_url(url)
    except FileNotFoundError:
        raise BadImageError(NO_FILE) from None


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey levels 0..16, scaled to uint8 0..255."""

    in_memory = True

    def __init__(self, reader: Reader = CLASSES) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (slow to import, and only this source uses it)

        digits, self.reader = load_digits(), reader
        self._images, self._labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target

    def images(self) -> Iterator[SourceItem]:
        """Yield the digits, named ``digits/0000`` and so on."""
        for i, label in enumerate(self._labels):
            yield SourceItem(f"digits/{i:04d}", self.reader.read([str(label)]))

    def read(self, source: str) -> LabelledImage:
        """Return a digit by its source name."""
        i = int(source.removeprefix("digits/"))
        return LabelledImage(Image.fromarray(self._images[i]), str(self._labels[i]))


class Torchvision(Source):
    """A classification data set of torchvision; its images are named ``NAME/split/number``."""

    def __init__(self, name: str, folder: Path, reader: Reader = CLASSES) -> None:
        """Download the data set unless it is in the folder, which holds those of all data sets.

        Raises UserError: no such data set, it is not for classification, or its download failed.
        """
        self.name, self.reader = name, reader
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
            given = split_of("train" if split == "trainval" else split)  # None of "all"
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


def open_source(prepare: PrepareConfig, run: RunConfig, split_folders: Mapping[str, str] | None = None) -> Source:
    """Open ``prepare.source``; raises UserError if it is missing or can't be read.

    Only who lists its images needs ``prepare.split_folders``.
    """
    kind, _, name = prepare.source.partition(":")
    path, columns = Path(prepare.path), dict[str, str](**(prepare.columns or {}))
    target_columns = prepare.target_columns or ["label"]
    if prepare.target_columns and kind not in {"csv", "webdataset", "parquet", "hf"}:
        raise UserError(f"prepare.target_columns: {kind} has no columns to be named: set null")
    make_reader = partial(reader_for, prepare)
    reader = make_reader(target_columns)
    if columns and kind not in {"webdataset", "parquet", "hf"}:
        raise UserError(f"prepare.columns: {kind} has no columns to be named: set null")
    if prepare.band_files and kind not in {"csv", "imagefolder"}:
        raise UserError(f"prepare.band_files: the images of {kind} are one file each: set null")
    match kind:
        case "digits":
            return Digits(reader)
        case "torchvision":
            return Torchvision(name, cache_folder(run.cache) / "torchvision", reader)
        case "csv":
            return CsvTable(path, name, make_reader, target_columns, prepare.band_files or ())
        case "imagefolder":
            remote = partial(RemoteImageFolder, path, prepare.source)
            folder = (remote if name else partial(ImageFolder, path))(split_folders, reader)
            return BandFiles(folder, prepare.band_files) if prepare.band_files else folder
    archives, cache = _archives(prepare), cache_folder(run.cache) / "archives"
    of_table: dict[str, Any] = {"columns": columns, "target_columns": prepare.target_columns}
    of_table |= {"make_reader": make_reader, "split_folders": split_folders}
    is_tar = kind == "webdataset"
    return WebDataset(archives, cache=cache, **of_table) if is_tar else ParquetFiles(archives, **of_table)


def reader_for(prepare: PrepareConfig, columns: Sequence[str]) -> Reader:
    """Return what reads ``prepare.target`` from columns of these names."""
    separator, fold = prepare.label_separator, prepare.label_case == "fold"
    return kinds.make_reader(prepare.target, columns, separator=separator, grades=prepare.grades, fold=fold)


def _archives(prepare: PrepareConfig) -> Archives:
    kind, _, pattern = prepare.source.partition(":")
    pattern = f"hf://datasets/{pattern}/**/*.parquet" if kind == "hf" else pattern
    return Archives(Path(prepare.path), prepare.source, pattern)


def lock_source(prepare: PrepareConfig) -> str:
    """Write down the files behind the URL of ``prepare.source``, for ``check_lock``; return a line about them.

    Raises UserError if nothing of it lies behind a URL, or it can't be reached.
    """
    kind, _, name = prepare.source.partition(":")
    lock = Path(prepare.path)
    source: Archives | RemoteImageFolder | CsvTable
    if kind == "csv":
        columns = prepare.target_columns or ["label"]
        source = CsvTable(lock, name, partial(reader_for, prepare), columns, prepare.band_files or ())
        lock = source.lock
    elif not is_url(name) and kind != "hf":
        raise UserError(f"prepare.source: {prepare.source} has no URL: DVC watches prepare.path itself")
    elif lock.is_dir():
        raise UserError(f"prepare.path: {lock} is a folder: set data/source.lock, the file to be written")
    elif kind == "imagefolder":
        source = RemoteImageFolder(lock, prepare.source, None, reader_for(prepare, ["label"]))
    else:
        source = _archives(prepare)
    files = source.list_remote()
    if not files:
        raise UserError(f"prepare.source: {name} names no URL: DVC watches prepare.path itself")
    write_lock(lock, prepare.source, files)
    return f"{lock}: {len(files):,} files, {sum(file.size for file in files) / 1e9:.3f} GB"
