"""Which files have the bands of one image, by a pattern for each band: ``*_B02.tif`` or ``B02/*.tif``.

An image is named by its folder and what stands for the ``*``: ``river/scene7`` of ``river/scene7_B02.tif``.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headstart.core.problems import some


def is_pattern(pattern: str) -> bool:
    """Return whether a pattern is the end of a path, with one ``*``, in its last part."""
    return posixpath.basename(pattern).count("*") == pattern.count("*") == 1 and not pattern.startswith("/")


class FileGroup(NamedTuple):
    """An image: its name, the numbers of its files in the order of the bands, and what is wrong with it, or None."""

    name: str
    files: list[int]
    problem: str | None = None


class BandPatterns:
    """The patterns of the bands' files, in the order of the bands; each is as ``is_pattern`` says."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Read the patterns; they are tried from the longest to the shortest.

        Of ``*.tif`` and ``*_nir.tif`` the latter decides what a_nir.tif is.
        """
        self.patterns = list(patterns)
        order = sorted(range(len(patterns)), key=lambda band: -len(patterns[band]))
        self._expressions = [(band, _expression(patterns[band])) for band in order]

    def place(self, path: str) -> tuple[int | None, str]:
        """Return which band a file has, and its image's name; no band if no pattern matches."""
        for band, expression in self._expressions:
            if match := expression.fullmatch(path):
                return band, match["folder"] + match["name"]
        return None, ""

    def paths(self, name: str) -> list[str]:
        """Return the paths of an image's files."""
        folder, last = posixpath.split(name)
        return [posixpath.join(folder, pattern.replace("*", last)) for pattern in self.patterns]

    def lacking(self, name: str, bands: Iterable[int]) -> str | None:
        """Return what an image of which these bands are there lacks, None for nothing."""
        there = set(bands)
        absent = [posixpath.basename(path) for band, path in enumerate(self.paths(name)) if band not in there]
        return f"lacks bands: {some(absent)}" if absent else None

    def group(self, paths: Iterable[str]) -> list[FileGroup]:
        """Make images of files, in the order of their first ones; what matches no pattern is an image by itself.

        A band that comes again for the same name begins another image.
        """
        groups, last = list[tuple[str, dict[int | None, int]]](), dict[str, dict[int | None, int]]()
        for number, path in enumerate(paths):
            band, name = self.place(path)
            if band is None:
                groups.append((path, {None: number}))
            elif name in last and band not in last[name]:
                last[name][band] = number
            else:
                last[name] = {band: number}
                groups.append((name, last[name]))
        return [self._whole(name, files) for name, files in groups]

    def _whole(self, name: str, files: dict[int | None, int]) -> FileGroup:
        if None in files:
            return FileGroup(name, [files[None]])
        bands = sorted((band, number) for band, number in files.items() if band is not None)
        return FileGroup(name, [number for _, number in bands], self.lacking(name, (band for band, _ in bands)))


def _expression(pattern: str) -> re.Pattern[str]:
    before, after = pattern.split("*")
    return re.compile(rf"(?P<folder>(?:.*/)?){re.escape(before)}(?P<name>[^/]+){re.escape(after)}", re.DOTALL)
