"""Image files: found below folders, and read without opening what is no file."""

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

IGNORED = {"thumbs.db", "desktop.ini"}
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
    """An image that was found, and what showed to be wrong with it."""

    path: Path
    problem: str | None


def read_file(path: Path) -> bytes:
    """Read a file's bytes; raises BadImageError for what is no file. A pipe or a device is never opened."""
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


def find_images(arguments: Sequence[str]) -> Iterator[ImageFile]:
    """Find the images that a command's arguments mean, one after the other; those of a folder come by their names.

    Args:
        arguments: files, which need not be there; folders, searched for images by their names; and patterns with
            ``*``, ``?``, ``[...]`` and ``**``, where the shell has left them.

    Raises:
        UserError: at once, a folder or a pattern without any image.
    """
    for argument in arguments:
        if next(_meant(argument), None) is None:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{argument}: no image is there; in folders those count whose names end in {suffixes}")
    return itertools.chain.from_iterable(map(_meant, arguments))


def _meant(argument: str) -> Iterator[ImageFile]:
    """Find the images that one argument means."""
    if Path(argument).is_dir():
        for name, problem in walk(Path(argument), ""):
            if problem or is_image_name(name):
                yield ImageFile(Path(argument, name), problem)
    elif not os.path.lexists(argument) and set(argument) & set("*?["):
        names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        yield from (ImageFile(Path(name), None) for name in names if not Path(name).is_dir())
    else:
        yield ImageFile(Path(argument), None)


def walk(root: Path, inside: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, str | None]]:
    """Name every file below a folder, and what shows to be wrong with it; links are followed, but no loops.

    A folder's files come in the order of their names, of which one folder's are in memory.

    Args:
        root: what names are relative to.
        inside: the folder, relative to the root, posix.
        above: the identities of folders that it must not lead back to.
    """
    at = identity(root / inside)
    if at in above:
        yield inside, "a link to a folder that it lies in"
        return
    try:
        with os.scandir(root / inside) as entries:
            for entry in sorted(entries, key=attrgetter("name")):
                below, problem = posixpath.join(inside, shown(entry.name)), name_problem(entry)
                if is_ignored(entry.name):
                    continue
                if problem or not is_folder(entry):
                    yield below, problem
                else:
                    yield from walk(root, below, above | {at})
    except OSError as error:
        yield inside, f"the folder can't be read: {error.strerror}"


def is_ignored(name: str) -> bool:
    """Whether a file is hidden or a file browser's own."""
    return name.startswith(".") or name.lower() in IGNORED


def is_image_name(name: str) -> bool:
    """Whether a name ends as images' names do."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def name_problem(entry: os.DirEntry[str]) -> str | None:
    """Say what is wrong with an entry's name, None where nothing is."""
    if shown(entry.name) != entry.name:
        return "its name is not UTF-8"
    if is_image_name(entry.name) and is_folder(entry):
        return "a folder with an image's name"
    return None


def shown(name: str) -> str:
    """Write a file name that is not UTF-8 with escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def identity(folder: Path) -> tuple[int, int]:
    """Tell a folder from all others, under whatever name."""
    about = folder.stat()
    return about.st_dev, about.st_ino
