"""Files that hold many images each: those that a pattern names, below ``prepare.path`` or behind a URL."""

import itertools
import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from headstart.core.errors import UserError
from headstart.core.problems import some
from headstart.data.dataset import Split
from headstart.data.names import mentioned_split
from headstart.data.remote import RemoteFile, check_lock, is_url, list_files, open_url
from headstart.data.source_item import Source, SourceItem
from headstart.data.watched import WatchedFiles

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")

logger = logging.getLogger(__name__)


class Archives:
    """The files of one source, by their names: relative to a folder, or to the part of a URL that has no pattern.

    Attributes:
        root: the folder; None where they lie behind a URL.
    """

    def __init__(self, path: Path, source: str, pattern: str) -> None:
        """Name the files of ``prepare.source``, which has this pattern.

        ``path`` is ``prepare.path``: the folder, or, of a URL, the lock. Raises UserError if it is no folder.
        """
        self.source, self.pattern, self._lock = source, pattern, path
        self.root = None if is_url(self.pattern) else path
        if self.root and not self.root.is_dir():
            raise UserError(f"prepare.path: {path} is not a folder: {self.pattern} is looked for below it")
        start = re.split(r"[*\[{]", self.pattern, maxsplit=1)[0]
        self._base = start[: start.rfind("/") + 1]
        self._remote: dict[str, RemoteFile] = {}

    def list_remote(self) -> list[RemoteFile]:
        """Return the files that lie behind a URL; raises UserError if there is none."""
        files = list_files(expand_braces(self.pattern))
        if not files:
            raise UserError(f"prepare.source: nothing is there that {self.pattern} names")
        return files

    def names(self) -> list[str]:
        """Return the names, sorted; raises UserError if one is not there, or they are not as the lock has them."""
        if self.root is None:
            files = check_lock(self._lock, self.source, self.list_remote)
            self._remote = {file.url.removeprefix(self._base): file for file in files}
            return list(self._remote)
        watched, names = WatchedFiles(self.root), set[str]()
        for pattern in expand_braces(self.pattern):
            if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                raise UserError(f"prepare.source: {pattern} leads out of {self.root}, the folder that DVC watches")
            try:
                found = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file()]
            except ValueError as error:
                raise UserError(f"prepare.source: {pattern}: {error}") from None
            if not found:
                raise UserError(f"prepare.source: no file below {self.root} is {pattern}")
            names.update(found)
        for name in names:
            watched.check(name)
        return sorted(names)

    def open(self, name: str) -> BinaryIO:
        """Open one of ``names`` to be read at any place; raises UserError."""
        if self.root is not None:
            try:
                return (self.root / name).open("rb")
            except OSError as error:
                raise UserError(f"{self.root / name} can't be read: {error.strerror}") from error
        return open_url(self._remote[name])

    def version(self, name: str) -> RemoteFile | None:
        """Return what a file behind a URL is known by; None of others."""
        return self._remote.get(name)

    def splits(self, names: list[str], split_folders: Mapping[str, str] | None) -> Mapping[str, Split]:
        """Return the split of each file, which its name or a folder's says; none if no file has one.

        Raises UserError if only some have one, or if ``split_folders``, which is ``prepare.split_folders``, names some.
        """
        if split_folders:
            raise UserError(
                "prepare.split_folders: only imagefolder has folders to be named; the files of this source say their "
                "split by their name (train-00000.parquet), or by a folder's: rename them, or set {} to draw the splits"
            )
        found = {name: split for name in names if (split := _split_of_path(name))} if split_folders is None else {}
        if found and (others := [name for name in names if name not in found]):
            raise UserError(
                f"prepare.source: {some(found, 3)} say by their names which split they are, {some(others, 3)} do not: "
                "narrow the pattern, rename them, or set prepare.split_folders: {} to draw all splits"
            )
        return found


class ArchiveSource(Source):
    """Images in archives; the one that was read last stays open, since images are read in the order of their names.

    Attributes:
        no_label: the problem of an image without a label that is not left out.
    """

    no_label = "has no label"

    def __init__(self, archives: Archives, split_folders: Mapping[str, str] | None) -> None:
        """List the archives; raises UserError as ``Archives.names`` does."""
        self.root, self._archives, self._split_folders = archives.root, archives, split_folders
        self._names = archives.names()
        self._opened: Any = None

    def images(self) -> Iterator[SourceItem]:
        """Yield the images, without those of validation and test that have no label; raises UserError."""
        splits = self._archives.splits(self._names, self._split_folders)
        for name in self._names:
            left_out = 0
            for item in self._items(name, splits.get(name)):
                if item.label is not None or item.problem:
                    yield item
                elif item.split in ("validation", "test"):
                    left_out += 1
                else:
                    yield replace(item, problem=self.no_label)
            if left_out:
                logger.info("%s: %s images are left out, since they have no labels", name, f"{left_out:,}")

    @abstractmethod
    def _items(self, name: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield an archive's images, of which its name says the split; neither label nor problem: it has no label."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open: a worker process opens its own."""
        return self.__dict__ | {"_opened": None}

    def __del__(self) -> None:
        if "_opened" in self.__dict__:  # not where opening the source failed
            self._close()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.file.close()
        self._opened = None


def _split_of_path(name: str) -> Split | None:
    return next(filter(None, map(mentioned_split, reversed(PurePosixPath(name).parts))), None)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield a pattern for each number in ``{000..127}`` and each word in ``{train,val}``, as shells do.

    Raises UserError if a range is empty.
    """
    braces = BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    choices = braces[1].split(",")
    if limits := RANGE.fullmatch(braces[1]):
        width = len(limits[1]) if limits[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(limits[1]), int(limits[2]) + 1)]
        if not choices:
            raise UserError(f"prepare.source: {braces[0]} counts downwards: begin with the smaller number")
    for choice, rest in itertools.product(choices, expand_braces(pattern[braces.end() :])):
        yield pattern[: braces.start()] + choice + rest
