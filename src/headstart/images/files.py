"""Image files: found below folders, and read without ever opening a pipe or a device."""

import glob
import itertools
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from headstart.core.errors import UserError
from headstart.images.decode import BadImageError

IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"}
LARGEST_FILE = 2**30
SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageFile(NamedTuple):
    """The path of an image file, and the problem that its name or place already shows, or None."""

    path: Path
    problem: str | None


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raises BadImageError if it is not a regular file. Pipes and devices are not opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError(f"{SPECIAL_FILES.get(stat.S_IFMT(status.st_mode), 'a special file')}, not a file")
        if status.st_size > LARGEST_FILE:
            raise BadImageError("larger than 1 GiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImageError("a link to nothing" if path.is_symlink() else "there is no such file") from None
    except (OSError, ValueError) as error:
        raise BadImageError(f"can't be read: {error.strerror if isinstance(error, OSError) else error}") from None


def find_images(arguments: Sequence[str]) -> Iterator[ImageFile]:
    """Yield the images that a command's arguments name, in their order; a folder's images are sorted by name.

    Arguments are files, which need not exist; folders, searched for files with an image's suffix; and patterns with
    ``*``, ``?``, ``[...]`` and ``**`` that the shell has not expanded. Raises UserError immediately if a folder or a
    pattern has no image.
    """
    for argument in arguments:
        if next(_images_of(argument), None) is None:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{argument}: no image is there; in folders, files with these suffixes count: {suffixes}")
    return itertools.chain.from_iterable(map(_images_of, arguments))


def _images_of(argument: str) -> Iterator[ImageFile]:
    if Path(argument).is_dir():
        for name, problem in walk(Path(argument), ""):
            if problem or is_image_name(name):
                yield ImageFile(Path(argument, name), problem)
    elif not os.path.lexists(argument) and set(argument) & set("*?["):
        names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        yield from (ImageFile(Path(name), None) for name in names if not Path(name).is_dir())
    else:
        yield ImageFile(Path(argument), None)


def walk(root: Path, inside: str) -> Iterator[tuple[str, str | None]]:
    """Yield the path of every file below a folder, with the problem that its name or place already shows, or None.

    Paths, ``inside`` too, are posix and relative to ``root``. Links are followed, except into a loop. A folder's
    entries are sorted by name; only one folder's are in memory.
    """
    if any((root / inside).samefile(root / parent) for parent in PurePosixPath(inside).parents):
        yield inside, "a link to a folder that it lies in"
        return
    try:
        for name, is_folder, problem in scan(root / inside):
            below = posixpath.join(inside, name)
            if problem or not is_folder:
                yield below, problem
            else:
                yield from walk(root, below)
    except OSError as error:
        yield inside, f"the folder can't be read: {error.strerror}"


def scan(folder: Path) -> Iterator[tuple[str, bool, str | None]]:
    """Yield a folder's entries sorted by name, without hidden ones and those of file browsers.

    Each is its name, whether it is a folder or a link to one, and the problem that this already shows, or None.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=attrgetter("name")):
            if entry.name.startswith(".") or entry.name.lower() in IGNORED:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that leads to itself
                is_folder = False
            name, problem = utf8_name(entry.name), None
            if name != entry.name:
                problem = "its name is not UTF-8"
            elif is_folder and is_image_name(name):
                problem = "a folder with an image's name"
            yield name, is_folder, problem


def is_image_name(name: str) -> bool:
    """Return whether a name has an image's suffix."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def utf8_name(name: str) -> str:
    """Return a file name with escapes for the bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
