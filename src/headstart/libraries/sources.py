"""Where pictures come from: what a source is, and the folders of classes.

A picture's source name is its posix path relative to the source's folder. Hidden files, Thumbs.db and desktop.ini are
ignored; whatever else lies in a class folder is taken for a picture.
"""

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from headstart.ground.artifacts import Split
from headstart.ground.errors import UserError
from headstart.libraries.images import BadImageError, LabelledImage

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
IGNORED = {"thumbs.db", "desktop.ini"}
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"}
LARGEST_FILE = 2**30
SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as its source lists it.

    Attributes:
        source: its name, unique in the source.
        label: its class; None where only reading tells it, or where there is none and ``problem`` says so.
        split: as the source gives it, or None.
        group: pictures of one group stay in one split; or None.
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
    """Lists its pictures, then reads each by name, in other processes too if they are not in memory anyhow."""

    further_columns: Sequence[str] = ()
    in_memory: bool

    def pictures(self) -> Iterator[Picture]:
        """List the pictures in any order, holding none; raises UserError."""

    def read(self, source: str) -> bytes | LabelledImage:
        """Read one picture; raises BadImageError."""


class Files(Source):
    """Reads pictures that are files below a folder."""

    in_memory = False

    def __init__(self, root: Path) -> None:
        """Keep the folder; raises UserError where it is none."""
        if not root.is_dir():
            raise UserError(f"prepare.path: {root} is not a folder: put your pictures there, or name another folder")
        self.root = root

    def read(self, source: str) -> bytes:
        """Read a file's bytes; raises BadImageError for what is no file. A pipe or a device is never opened."""
        path = self.root / source
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise BadImageError(f"{SPECIAL_FILES.get(stat.S_IFMT(about.st_mode), 'a special file')}, not a file")
            if about.st_size > LARGEST_FILE:
                raise BadImageError("larger than 1 GiB")
            return path.read_bytes()
        except FileNotFoundError:
            raise BadImageError("a link to nothing" if path.is_symlink() else "there is no such file") from None
        except (OSError, ValueError) as error:
            raise BadImageError(f"can't be read: {error.strerror if isinstance(error, OSError) else error}") from None


class ImageFolder(Files):
    """One folder a class, or ``train``, ``val`` and ``test`` of class folders."""

    def pictures(self) -> Iterator[Picture]:
        """List the pictures; raises UserError where the folders can't be understood."""
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
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

    def _classes(self, inside: str, split: Split | None) -> Iterator[Picture]:
        """List the pictures of all class folders in a folder."""
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                name, problem = _shown(entry.name), _name_problem(entry)
                source = posixpath.join(inside, name)
                if _ignored(entry.name):
                    continue
                if problem:
                    yield Picture(source, None, split, problem=problem)
                elif not _is_folder(entry):
                    # Notes and lists beside the class folders are common, and are nobody's pictures.
                    if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES or entry.is_symlink():
                        yield Picture(source, None, split, problem="lies in no class folder")
                else:
                    empty = True
                    for below, trouble in _walk(self.root, source, frozenset({_identity(self.root)})):
                        empty = False
                        yield Picture(below, name, split, problem=trouble)
                    if empty and split in (None, "train"):
                        raise UserError(
                            f"{self.root / source}: the class folder holds no picture: fill it or remove it"
                        )


def _walk(root: Path, inside: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str | None]]:
    """Name every file below a folder, and what shows to be wrong with it; links are followed, but no loops."""
    identity = _identity(root / inside)
    if identity in above:
        yield inside, "a link to a folder that it lies in"
        return
    try:
        with os.scandir(root / inside) as entries:
            for entry in entries:
                below, problem = posixpath.join(inside, _shown(entry.name)), _name_problem(entry)
                if _ignored(entry.name):
                    continue
                if problem or not _is_folder(entry):
                    yield below, problem
                else:
                    yield from _walk(root, below, above | {identity})
    except OSError as error:
        yield inside, f"the folder can't be read: {error.strerror}"


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _name_problem(entry: os.DirEntry[str]) -> str | None:
    if _shown(entry.name) != entry.name:
        return "its name is not UTF-8"
    if _is_folder(entry) and PurePosixPath(entry.name).suffix.lower() in PICTURE_SUFFIXES:
        return "a folder with a picture's name"
    return None


def _shown(name: str) -> str:
    """Write a file name that is not UTF-8 with escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
