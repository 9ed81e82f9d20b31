"""Tables and the paths in them as people write them: separators, encodings, spellings of a path.

A table is read as it was meant where only one reading is possible; otherwise a UserError names its line.
"""

import codecs
import csv
import functools
import os
import posixpath
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote, urlsplit

from headstart.core.errors import UserError
from headstart.images.kinds import HEAD_BYTES, recognise
from headstart.targets.cells import split_unit

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How the files of Excel and LibreOffice begin."""


class TableFile:
    """The rows of a CSV file, whose separator is the one that makes the needed columns of its first line."""

    def __init__(self, path: Path, needed: Collection[str]) -> None:
        """Look at the first line; raises UserError if there is no such file, or it is no text."""
        self.path = path
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            raise UserError(f"prepare.source: {path} {what} (the file's name is relative to prepare.path)")
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES)
        if start.startswith(WORKBOOKS):
            raise UserError(f"prepare.source: {path} is a workbook, not a CSV table: save it as CSV UTF-8")
        # UTF-16 with its byte order mark; or without, where every second byte of the ASCII header is 0.
        marks = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
        self._encoding = marks.get(start[:2]) or {1: "utf-16-le", 0: "utf-16-be"}.get(
            start[:2].find(b"\0"), "utf-8-sig"
        )
        self._delimiter, found = ",", False
        with self._text(newline=None, errors="replace") as text:
            header = next(filter(str.strip, text), "").rstrip("\n")
            for delimiter in ",;\t|":
                columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
                if len(columns) > 1 and all(find_column(name, columns) for name in needed):
                    self._delimiter, found = delimiter, True
        if not found and (kind := recognise(start)) and kind.name != "text":
            raise UserError(
                f"prepare.source: {path} holds no CSV table ({kind.name}): fetch it, or save it as CSV UTF-8"
            )
        if header.lower().startswith("sep="):  # Excel's way to name it
            self._delimiter = header[4:5] or ","

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the values of each row with the number of its first line; rows without a value are skipped.

        Raises UserError, mostly where a quote is not closed.
        """
        number = 1
        with self._text(newline="") as text:
            reader = csv.reader(text, delimiter=self._delimiter, strict=True, skipinitialspace=True)
            try:
                for values in reader:
                    if any(map(str.strip, values)) and not (number == 1 and values[0].lower().startswith("sep=")):
                        yield number, values
                    number = reader.line_num + 1
            except csv.Error as error:
                where = f"{self.path}, line {number}"
                raise UserError(f"{where}: is a quote opened there and not closed? ({error})") from error

    @contextmanager
    def _text(self, newline: str | None, errors: str = "strict") -> Iterator[Iterator[str]]:
        """Open the file; turn what reading it raises into UserError."""
        try:
            with self.path.open(newline=newline, encoding=self._encoding, errors=errors) as file:
                yield file
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(
                f"{self.path} is not a CSV table in UTF-8: {error}. Save it as that (in a spreadsheet: CSV UTF-8)"
            ) from error


def find_column(wanted: str, header: Sequence[str]) -> str | None:
    """Return the column of a header that a name stands for, None if there is none, or several.

    It is that name itself, or in other case, or without its unit: ``weight`` is ``Weight [kg]``.
    """
    forms: list[Callable[[str], str]] = [str, str.casefold, lambda name: split_unit(name)[0].casefold()]
    for form in forms:
        found = [name for name in header if form(name) == form(wanted)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


class FolderPaths:
    """Paths below a folder, however they are written. Strings, since a table may have millions."""

    def __init__(self, root: Path) -> None:
        """Keep the folder's absolute path, as it is written and with its links resolved."""
        self._roots = os.path.abspath(root), os.path.realpath(root)  # noqa: PTH100

    def locate(self, path: str) -> tuple[str | None, bool]:
        """Return a path relative to the folder, None if it is outside, and whether something is there.

        It is taken as it stands, or in the first other spelling in which it exists.
        """
        for spelling in _spellings(path):
            inside = self.inside(spelling)
            if inside is not None and os.path.lexists(f"{self._roots[0]}/{inside}"):
                return inside, True
        elsewhere = "://" in path or PureWindowsPath(path.strip()).drive
        return None if elsewhere else self.inside(path.strip()), False

    def inside(self, path: str) -> str | None:
        """Return a path relative to the folder, None if it is outside; links are resolved only where that decides."""
        if "\0" in path:
            return None
        full = posixpath.normpath(posixpath.join(self._roots[0], path))
        for root in self._roots:
            if full.startswith(f"{root}/"):
                return full[len(root) + 1 :]
        real = posixpath.join(_real_path(posixpath.dirname(full)), posixpath.basename(full))
        return real[len(self._roots[1]) + 1 :] if real.startswith(f"{self._roots[1]}/") else None

    def is_folder(self, inside: str) -> bool:
        """Return whether a path relative to the folder is a folder itself."""
        return os.path.isdir(f"{self._roots[0]}/{inside}")  # noqa: PTH112


def _spellings(path: str) -> Iterator[str]:
    """Yield ways to read a path, first as it stands.

    Then without blanks around it and from a ``file:`` URL, with slashes for backslashes, relative to the working
    directory, and in both of Unicode's forms.
    """
    yield path
    plain = path.strip()
    if plain.startswith("file:"):
        plain = unquote(urlsplit(plain).path)
    slashes = plain.replace("\\", "/")
    yield from (plain, slashes, os.path.abspath(slashes))  # noqa: PTH100
    yield from (unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))


@functools.lru_cache(maxsize=4096)
def _real_path(folder: str) -> str:
    return os.path.realpath(folder)
