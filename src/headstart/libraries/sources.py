"""Where pictures come from: what a source is, and the folders of classes.

A picture's source name is its posix path relative to the source's folder. Hidden files, Thumbs.db and desktop.ini are
ignored; whatever else lies in a class folder is taken for a picture.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headstart.ground.artifacts import Split
from headstart.ground.errors import UserError
from headstart.libraries.images import LabelledImage
from headstart.libraries.picture_files import (
    identity,
    is_folder,
    is_ignored,
    is_picture_name,
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
        return read_file(self.root / source)


class ImageFolder(Files):
    """One folder a class, or ``train``, ``val`` and ``test`` of class folders."""

    def pictures(self) -> Iterator[Picture]:
        """List the pictures; raises UserError where the folders can't be understood."""
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

    def _classes(self, inside: str, split: Split | None) -> Iterator[Picture]:
        """List the pictures of all class folders in a folder."""
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                name, problem = shown(entry.name), name_problem(entry)
                source = posixpath.join(inside, name)
                if is_ignored(entry.name):
                    continue
                if problem:
                    yield Picture(source, None, split, problem=problem)
                elif not is_folder(entry):
                    # Notes and lists beside the class folders are common, and are nobody's pictures.
                    if is_picture_name(name) or entry.is_symlink():
                        yield Picture(source, None, split, problem="lies in no class folder")
                else:
                    empty = True
                    for below, trouble in walk(self.root, source, frozenset({identity(self.root)})):
                        empty = False
                        yield Picture(below, name, split, problem=trouble)
                    if empty and split in (None, "train"):
                        raise UserError(
                            f"{self.root / source}: the class folder holds no picture: fill it or remove it"
                        )
