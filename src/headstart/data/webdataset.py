"""WebDataset: tar archives in which the files of one sample share their name up to its first dot.

Source: `the format <https://github.com/webdataset/webdataset#the-webdataset-format>`_. An archive is read where it
lies. Its table of contents, which a tar file does not have, is made by one pass over the headers; that of an archive
behind a URL is kept in the cache folder, so that no other process and no later run reads the archive for it again.
"""

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from headstart.core.errors import UserError, first_line
from headstart.core.io import atomic_write
from headstart.core.problems import some
from headstart.core.text import normalize_label
from headstart.data.archives import Archives, ArchiveSource
from headstart.data.dataset import Split
from headstart.data.source_item import SourceItem
from headstart.images.decode import BadImageError
from headstart.images.files import LARGEST_FILE, is_image_name

LABEL_KEYS = ("label", "cls", "class", "class_name")
"""Where a sample's JSON has its label, unless ``prepare.columns`` says it."""
LARGEST_LABEL = 2**20  # bytes


class Sample(NamedTuple):
    """A sample: the name of its image in the archive, where its bytes are, its label, and why it is bad, or None."""

    name: str
    offset: int
    size: int
    label: str | None
    problem: str | None


class _OpenArchive(NamedTuple):
    """The archive that was read last, since images are read in the order of their names: its images' places in it."""

    name: str
    file: BinaryIO
    places: dict[str, tuple[int, int]]


class WebDataset(ArchiveSource):
    """Tar archives; an image is named ``ARCHIVE/NAME``, with the archive's name and its own in it."""

    no_label = "has no label: no cls, json or txt"

    def __init__(
        self, archives: Archives, cache: Path, columns: Mapping[str, str], split_folders: Mapping[str, str] | None
    ) -> None:
        """Keep what ``open_source`` was given; raises UserError for archives that are compressed as a whole."""
        if not archives.pattern.endswith(".tar"):
            raise UserError(
                f"prepare.source: {archives.pattern}: the archives must be plain .tar files, in which an image can be "
                "read without all that lies before it: `gunzip` or `zstd -d` makes them"
            )
        if unknown := sorted(columns.keys() - {"image", "label"}):
            raise UserError(f"prepare.columns: {unknown[0]}: samples of webdataset have an image and a label only")
        self._cache, self._columns = cache, dict(columns)
        super().__init__(archives, split_folders)

    def _items(self, name: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield an archive's images; raises UserError if it is damaged."""
        samples = self._samples(name)
        if not samples:
            raise UserError(f"{name}: no image is in this archive: are its files called NAME.jpg and NAME.cls?")
        for sample in samples:
            yield SourceItem(f"{name}/{sample.name}", sample.label, split, problem=sample.problem)

    def read(self, source: str) -> bytes:
        """Read one image; raises BadImageError if it is not there, and UserError if the archive can't be read."""
        archive, _, member = source.partition(".tar/")
        archive += ".tar"
        if self._opened is None or self._opened.name != archive:
            self._close()
            places = {sample.name: (sample.offset, sample.size) for sample in self._samples(archive)}
            self._opened = _OpenArchive(archive, self._archives.open(archive), places)
        if member not in self._opened.places:
            raise BadImageError("it is no longer in its archive")
        offset, size = self._opened.places[member]
        if size > LARGEST_FILE:
            raise BadImageError("larger than 1 GiB")
        self._opened.file.seek(offset)
        content: bytes = self._opened.file.read(size)
        if len(content) != size:
            raise UserError(f"{archive} is cut: {member} is not whole. Copy or pack it again")
        return content

    def _samples(self, name: str) -> list[Sample]:
        """Return the samples of an archive, of one behind a URL from the cache folder if it was read before."""
        version, path = self._archives.version(name), None
        if version is not None and version.version:
            key = json.dumps([*version, self._columns], sort_keys=True).encode()
            path = self._cache / f"{hashlib.sha256(key).hexdigest()[:32]}.json"
            if path.exists():
                return [Sample(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        with self._archives.open(name) as file:
            samples = list(_samples(file, name, self._columns))
        if path is not None:
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(samples), encoding="utf-8")
        return samples


def _samples(file: BinaryIO, name: str, columns: Mapping[str, str]) -> Iterator[Sample]:
    """Yield the samples of an archive; raises UserError if it is damaged or cut."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, base = posixpath.split(member.name)
                key, _, suffix = base.partition(".")
                if key and not member.isdir():
                    samples.setdefault(posixpath.join(folder, key), {})[suffix] = member
            file.seek(archive.offset)
            if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                raise UserError(f"{name} is cut: its end is missing. Copy or pack it again")
            for members in samples.values():
                images = [suffix for suffix in members if is_image_name(f"a.{suffix}")]
                images = [columns["image"]] if columns.get("image") in members else images
                if not images:
                    continue
                image = members[images[0]]
                label, problem = _label(archive, members, columns.get("label"))
                if len(images) > 1:
                    problem = f"its sample has the images {some(images)}: name one by prepare.columns: {{image: …}}"
                elif not image.isreg() or image.issparse():
                    problem = "a link or another special file in the archive"
                yield Sample(image.name, image.offset_data, image.size, label, problem)
    except tarfile.TarError as error:
        raise UserError(f"{name} is no tar archive, or damaged: {first_line(error)}: copy or pack it again") from error


def _label(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], wanted: str | None
) -> tuple[str | None, str | None]:
    """Return a sample's label, or None and the problem with it; both are None where the sample has no label at all."""

    def content(suffix: str) -> str:
        file = archive.extractfile(members[suffix])
        return file.read(LARGEST_LABEL).decode("utf-8") if file else ""

    try:
        text: object = None
        if wanted is not None and wanted in members:
            text = content(wanted)
        elif wanted is None and "cls" in members:
            text = content("cls")
        elif "json" in members:
            record = json.loads(content("json"))
            keys = LABEL_KEYS if wanted is None else (wanted,)
            text = next((record[key] for key in keys if key in record), None) if isinstance(record, dict) else record
        elif wanted is None and "txt" in members:
            text = content("txt")
    except ValueError as error:
        return None, f"its label can't be read: {first_line(error)}"
    if text is None:
        return None, None
    label = normalize_label(str(text)) if isinstance(text, str | int) else ""
    return (label, None) if label else (None, "its label is neither a name nor a whole number")
