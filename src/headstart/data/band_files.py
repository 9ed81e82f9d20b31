"""Images whose bands are in a file each: found by a pattern for each band, and named by what their files share."""

import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from headstart.core.errors import UserError
from headstart.core.problems import some
from headstart.data.image_info import SourceContent
from headstart.data.source_item import Source, SourceItem
from headstart.images.band_files import BandPatterns, is_pattern
from headstart.images.bands import MAX_BANDS
from headstart.images.decode import BadImageError

BRACED = re.compile("[%{},]")
ENDING = re.compile(r"(?P<start>.+)(?P<end>[-_][^-_/]+)", re.DOTALL)

logger = logging.getLogger(__name__)


class BandFiles(Source):
    """The images of a folder, each made of one file for each pattern of ``prepare.band_files``."""

    def __init__(self, files: Source, patterns: Sequence[str]) -> None:
        """Group what ``files`` lists; raises UserError for a pattern without one ``*`` in its last part."""
        for pattern in patterns:
            if not is_pattern(pattern):
                raise UserError(
                    f"prepare.band_files: {pattern}: write the end of the files' paths with one * for what all files "
                    "of an image share in their names, such as *_B02.tif or B02/*.tif"
                )
        self.patterns = list(patterns)
        self._files, self._expressions = files, BandPatterns(patterns)
        self.reader, self.root = files.reader, files.root

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; one without the file of a band is bad. Files that match no pattern are left out and named.

        Raises UserError if no file matches one, and what listing the files raises.
        """
        found, bands, others = dict[str, SourceItem](), dict[str, set[int]](), list[str]()
        for item in self._files.images():
            band, name = self._expressions.place(item.source)
            if band is None:
                others.append(item.source)
                continue
            first = found.setdefault(name, SourceItem(name, item.label, item.split, problem=item.problem))
            if first.problem is None and item.problem is not None:
                found[name] = SourceItem(name, item.label, item.split, problem=f"{item.source}: {item.problem}")
            bands.setdefault(name, set()).add(band)
        if not found:
            raise UserError(
                f"prepare.band_files: none of {len(others):,} files is called as one of {some(self.patterns)}: the "
                f"first is {others[0] if others else 'missing'}"
            )
        if others:
            logger.info(
                "%d files are in no band of prepare.band_files, and are left out: %s", len(others), some(others)
            )
        for name, item in found.items():
            problem = item.problem or self._expressions.lacking(name, bands[name])
            yield SourceItem(name, item.label, item.split, problem=problem)

    def read(self, source: str) -> tuple[bytes, ...]:
        """Return the contents of an image's files, in the order of the patterns; raises BadImageError."""
        return read_each(self._expressions.paths(source), self._files.read)


def shared_endings(sources: Iterable[str]) -> list[str]:
    """Return the endings that files which begin alike have, such as _B02.tif and _B03.tif; none if they have no such.

    There are at most as many as bands, the same of nearly each beginning, and four beginnings a folder at least: the
    numbers of cat_1.jpg, cat_2.jpg are none.
    """
    matches = [match for match in map(ENDING.fullmatch, sources) if match]
    starts, endings = {match["start"] for match in matches}, sorted({match["end"] for match in matches})
    folders = {posixpath.dirname(start) for start in starts}
    alike = len(matches) >= 0.95 * len(starts) * len(endings)
    return endings if 2 <= len(endings) <= MAX_BANDS and len(starts) >= 4 * len(folders) and alike else []


def read_each(paths: Sequence[str], read: Callable[[str], SourceContent]) -> tuple[bytes, ...]:
    """Return the contents of several files; raises BadImageError that names the one which is bad."""
    contents = list[bytes]()
    for path in paths:
        try:
            content = read(path)
        except BadImageError as error:
            raise BadImageError(f"{Path(path).name}: {error}") from None
        assert isinstance(content, bytes)
        contents.append(content)
    return tuple(contents)


def join_names(paths: Sequence[str]) -> str:
    """Return one name for several files: ``a_B02.tif`` and ``a_B03.tif`` are ``a_B0{2,3}.tif``, as in a shell."""
    paths = [BRACED.sub(lambda found: f"%{ord(found[0]):02X}", path) for path in paths]
    start = posixpath.commonprefix(paths)
    rest = [path[len(start) :] for path in paths]
    end = posixpath.commonprefix([path[::-1] for path in rest])[::-1]
    middle = [path[len(start) : len(path) - len(end)] for path in paths]
    return f"{start}{{{','.join(middle)}}}{end}"


def split_names(name: str) -> list[str]:
    """Return the files that ``join_names`` made one name of."""
    start, _, rest = name.partition("{")
    middle, _, end = rest.partition("}")
    paths = [f"{start}{part}{end}" for part in middle.split(",")]
    return [re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), path) for path in paths]
