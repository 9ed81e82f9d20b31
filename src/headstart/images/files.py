"""Image files: found below folders, and read without ever opening a pipe or a device."""

import contextlib
import glob
import itertools
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from headstart.core.errors import UserError
from headstart.images.band_files import BandPatterns
from headstart.images.decode import BadImageError
from headstart.images.kinds import HEAD_BYTES, image_format, recognise

IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
# The recycle bins and snapshots of network storage, and what Windows and Picasa write.
IGNORED |= {"#recycle", "@recycle", "#snapshot", "system volume information", "picasa.ini"}
STREAMS = (":zone.identifier", ":encryptable")
"""Ends of the names of files that copying from Windows makes of what it notes beside a file."""
# Files with these are images, even where their content is not: it should be one. Others are judged by their content.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"}
IMAGE_SUFFIXES |= {".dcm", ".dicom", ".npy", ".npz"}
IMAGE_SUFFIXES |= {".jpe", ".jfif", ".heic", ".heif", ".tga", ".im", ".pcd"}  # the last three have no signature
LARGEST_FILE = 2**30
SPECIAL_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageFile(NamedTuple):
    """The path of an image file, and the problem that its name or place already shows, or None.

    Where the bands are in several files, ``bands`` are their paths, and ``path`` is what these have in common.
    """

    path: Path
    problem: str | None
    bands: tuple[Path, ...] = ()


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
        if not path.is_symlink():
            raise BadImageError("there is no such file") from None
        annexed = ": `git annex get` fetches it" if ".git/annex/objects" in str(path.readlink()) else ""
        raise BadImageError(f"a link to nothing{annexed}") from None
    except (OSError, ValueError) as error:
        raise BadImageError(f"can't be read: {error.strerror if isinstance(error, OSError) else error}") from None


def find_images(arguments: Sequence[str], passed_over: Counter[str] | None = None) -> Iterator[ImageFile]:
    """Yield the images that a command's arguments name, in their order; a folder's images are sorted by name.

    Arguments are files, which need not exist; folders, searched to their depth; and patterns with ``*``, ``?``,
    ``[...]`` and ``**`` that the shell has not expanded. In folders and of patterns, files count that have an image's
    suffix or content; the others are counted in ``passed_over`` by their kind as they are met. Raises UserError
    immediately if a folder or a pattern has no image.
    """
    for argument in arguments:
        if not argument:  # an unset variable of the shell; as a path it would be the working directory
            raise UserError("an empty path: name a file, a folder or a pattern (. is this folder)")
        others: Counter[str] = Counter()
        if next(_images_of(argument, others), None) is None:
            raise UserError(f"{argument}: no image is there{f', but {counted(others)}' if others else ''}")
    kinds = Counter[str]() if passed_over is None else passed_over
    return itertools.chain.from_iterable(_images_of(argument, kinds) for argument in arguments)


def join_bands(files: Iterable[ImageFile], patterns: Sequence[str]) -> list[ImageFile]:
    """Make images of files with a band each, named by ``patterns``; other files are images by themselves."""
    listed = list(files)
    images = []
    for name, numbers, lacking in BandPatterns(patterns).group(each.path.as_posix() for each in listed):
        parts = [listed[number] for number in numbers]
        problem = next((each.problem for each in parts if each.problem), lacking)
        is_alone = len(parts) == 1 and problem is None
        images.append(parts[0] if is_alone else ImageFile(Path(name), problem, tuple(each.path for each in parts)))
    return images


def counted(kinds: Counter[str]) -> str:
    """Return counts by kind as text, the commonest first, such as "3 text, 1 PDF"."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())


def _images_of(argument: str, passed_over: Counter[str]) -> Iterator[ImageFile]:
    if Path(argument).is_dir():
        for name, problem in walk(Path(argument), ""):
            path = Path(argument, name)
            if problem or is_image_file(path, passed_over):
                yield ImageFile(path, problem)
    elif not os.path.lexists(argument) and set(argument) & set("*?["):
        names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        paths = (Path(name) for name in names)
        yield from (ImageFile(path, None) for path in paths if not path.is_dir() and is_image_file(path, passed_over))
    else:
        yield ImageFile(Path(argument), None)


def is_image_file(path: Path, passed_over: Counter[str] | None = None) -> bool:
    """Return whether a file has an image's suffix or content; count it in ``passed_over`` by its kind if not."""
    if is_image_name(path.name):
        return True
    head, kind = b"", "unreadable"
    with contextlib.suppress(OSError):
        kind = SPECIAL_FILES.get(stat.S_IFMT(path.stat().st_mode), "empty").removeprefix("a ")
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                head = file.read(HEAD_BYTES)
    if image_format(head):
        return True
    if passed_over is None:
        return False
    if head:
        known = recognise(head)
        kind = known.name if known else "unknown"
    passed_over[kind] += 1
    return False


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
    names, folders, links = list[str](), set[str](), set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:  # it takes three times the memory of its name
            if not is_ignored(entry.name):
                names.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
                elif entry.is_dir():
                    folders.add(entry.name)
    for entry_name in sorted(names):
        # Path.is_dir would raise where a link leads to what may not be read.
        is_folder = entry_name in folders or (entry_name in links and os.path.isdir(folder / entry_name))  # noqa: PTH112
        name, problem = utf8_name(entry_name), None
        if name != entry_name:
            problem = f"{'with all in it: ' if is_folder else ''}its name is not UTF-8: rename it"
        elif is_folder and is_image_name(name):
            problem = "a folder with an image's name"
        yield name, is_folder, problem


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or what file browsers and network storage leave."""
    lower = name.lower()
    hidden = lower.startswith(".") and not lower.endswith(".icloud")  # which stands for a file to be downloaded
    return hidden or lower in IGNORED or lower.endswith(STREAMS)


def is_image_name(name: str) -> bool:
    """Return whether a name has an image's suffix."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def utf8_name(name: str) -> str:
    """Return a file name with escapes for the bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
