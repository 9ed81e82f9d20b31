"""Images whose bands are in a file each: found by a pattern for each band, and named by what their files share."""

import logging
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from headstart.core.errors import UserError
from headstart.core.problems import some
from headstart.data.image_info import SourceContent
from headstart.data.source_item import Source, SourceItem
from headstart.images.decode import BadImageError

BRACED = re.compile("[%{},]")

logger = logging.getLogger(__name__)


class BandFiles(Source):
    """The images of a folder, each made of one file for each pattern of ``prepare.band_files``.

    An image is named by its folder and what stands for the ``*``: ``river/scene7`` of ``river/scene7_B02.tif``.
    """

    def __init__(self, files: Source, patterns: Sequence[str]) -> None:
        """Group what ``files`` lists; raises UserError for a pattern without one ``*`` in its last part."""
        for pattern in patterns:
            if posixpath.basename(pattern).count("*") != 1 or pattern.count("*") != 1 or pattern.startswith("/"):
                raise UserError(
                    f"prepare.band_files: {pattern}: write the end of the files' paths with one * for what all files "
                    "of an image share in their names, such as *_B02.tif or B02/*.tif"
                )
        self._files, self._patterns = files, list(patterns)
        self.reader, self.root = files.reader, files.root
        # The most special first: of *.tif and *_nir.tif the latter decides what a_nir.tif is.
        order = sorted(range(len(patterns)), key=lambda band: -len(patterns[band]))
        self._expressions = [(band, _expression(patterns[band])) for band in order]

    def images(self) -> Iterator[SourceItem]:
        """Yield the images; one without the file of a band is bad. Files that match no pattern are left out and named.

        Raises UserError if no file matches one, and what listing the files raises.
        """
        found, bands, others = dict[str, SourceItem](), dict[str, set[int]](), list[str]()
        for item in self._files.images():
            band, name = self._place(item.source)
            if band is None:
                others.append(item.source)
                continue
            first = found.setdefault(name, SourceItem(name, item.label, item.split, problem=item.problem))
            if first.problem is None and item.problem is not None:
                found[name] = SourceItem(name, item.label, item.split, problem=f"{item.source}: {item.problem}")
            bands.setdefault(name, set()).add(band)
        if not found:
            raise UserError(
                f"prepare.band_files: none of {len(others):,} files is called as one of {some(self._patterns)}: the "
                f"first is {others[0] if others else 'missing'}"
            )
        if others:
            logger.info(
                "%d files are in no band of prepare.band_files, and are left out: %s", len(others), some(others)
            )
        for name, item in found.items():
            absent = [path for band, path in enumerate(self._paths(name)) if band not in bands[name]]
            problem = f"lacks {some([posixpath.basename(path) for path in absent])}" if absent else None
            yield SourceItem(name, item.label, item.split, problem=item.problem or problem)

    def read(self, source: str) -> tuple[bytes, ...]:
        """Return the contents of an image's files, in the order of the patterns; raises BadImageError."""
        return read_each(self._paths(source), self._files.read)

    def _paths(self, source: str) -> list[str]:
        folder, name = posixpath.split(source)
        return [posixpath.join(folder, pattern.replace("*", name)) for pattern in self._patterns]

    def _place(self, path: str) -> tuple[int | None, str]:
        """Return which band a file has, and its image's name; no band if no pattern matches."""
        for band, expression in self._expressions:
            if match := expression.fullmatch(path):
                return band, match["folder"] + match["name"]
        return None, ""


def _expression(pattern: str) -> re.Pattern[str]:
    before, after = pattern.split("*")
    return re.compile(rf"(?P<folder>(?:.*/)?){re.escape(before)}(?P<name>[^/]+){re.escape(after)}", re.DOTALL)


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
