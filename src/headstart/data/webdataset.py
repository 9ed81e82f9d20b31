"""WebDataset: tar archives in which the files of one sample share their name up to its first dot.

Source: `the format <https://github.com/webdataset/webdataset#the-webdataset-format>`_. An archive is read where it
lies. Its table of contents, which a tar file does not have, is made by one pass over the headers; that of an archive
behind a URL is kept in the cache folder, so that no other process and no later run reads the archive for it again.
"""

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from headstart.core.errors import UserError, first_line
from headstart.core.io import atomic_write
from headstart.core.problems import some
from headstart.data.archives import Archives, ArchiveSource
from headstart.data.dataset import Split
from headstart.data.source_item import SourceItem
from headstart.images.decode import BadImageError
from headstart.images.files import LARGEST_FILE, is_image_name
from headstart.targets.cells import CellError
from headstart.targets.target import MakeReader

LABEL_KEYS = ("label", "cls", "class", "class_name")
"""Where a sample's JSON has its label, unless ``prepare.columns`` says it."""
LARGEST_LABEL = 2**20  # bytes


class Sample(NamedTuple):
    """A sample: the name of its image in the archive, where its bytes are, its target, and why it is bad, or None."""

    name: str
    offset: int
    size: int
    cells: list[Any] | None  # as the archive has them
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
        self,
        archives: Archives,
        *,
        cache: Path,
        columns: Mapping[str, str],
        target_columns: Sequence[str] | None,
        make_reader: MakeReader,
        split_folders: Mapping[str, str] | None,
    ) -> None:
        """Keep what ``open_source`` was given; raises UserError for archives that are compressed as a whole."""
        if not archives.pattern.endswith(".tar"):
            raise UserError(
                f"prepare.source: {archives.pattern}: the archives must be plain .tar files, in which an image can be "
                "read without all that lies before it: `gunzip` or `zstd -d` makes them"
            )
        if unknown := sorted(columns.keys() - {"image", "label"}):
            raise UserError(f"prepare.columns: {unknown[0]}: samples of webdataset have an image and a label only")
        self._cache, self._image = cache, columns.get("image")
        self._targets = target_columns or ([columns["label"]] if "label" in columns else None)
        self.reader = make_reader(self._targets or ["label"])
        super().__init__(archives, split_folders)

    def _items(self, name: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield an archive's images; raises UserError if it is damaged."""
        samples = self._samples(name)
        if not samples:
            raise UserError(f"{name}: no image is in this archive: are its files called NAME.jpg and NAME.cls?")
        for sample in samples:
            label, problem = None, sample.problem
            if sample.cells is not None and problem is None:
                try:
                    label = self.reader.read(sample.cells)
                except CellError as error:
                    problem = str(error)
            yield SourceItem(f"{name}/{sample.name}", label, split, problem=problem)

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
            key = json.dumps([*version, self._image, self._targets]).encode()
            path = self._cache / f"{hashlib.sha256(key).hexdigest()[:32]}.json"
            if path.exists():
                return [Sample(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        with self._archives.open(name) as file:
            samples = list(_samples(file, name, self._image, self._targets))
        if path is not None:
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(samples), encoding="utf-8")
        return samples


def _samples(file: BinaryIO, name: str, wanted: str | None, targets: Sequence[str] | None) -> Iterator[Sample]:
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
                images = [wanted] if wanted in members else images
                if not images:
                    continue
                image = members[images[0]]
                cells, problem = _cells(archive, members, targets)
                if len(images) > 1:
                    problem = f"its sample has the images {some(images)}: name one by prepare.columns: {{image: …}}"
                elif not image.isreg() or image.issparse():
                    problem = "a link or another special file in the archive"
                yield Sample(image.name, image.offset_data, image.size, cells, problem)
    except tarfile.TarError as error:
        raise UserError(f"{name} is no tar archive, or damaged: {first_line(error)}: copy or pack it again") from error


def _cells(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], targets: Sequence[str] | None
) -> tuple[list[Any] | None, str | None]:
    """Return what a sample has of the target, or None and the problem; both are None where it has nothing at all."""

    def content(suffix: str) -> str:
        file = archive.extractfile(members[suffix])
        return file.read(LARGEST_LABEL).decode("utf-8").strip() if file else ""

    own = ("cls",) if targets is None else targets if len(targets) == 1 else ()
    last = ("txt",) if targets is None and "json" not in members else ()
    try:
        for suffix in (*own, *last):
            if suffix in members:
                return [content(suffix)], None
        record = json.loads(content("json")) if "json" in members else None
    except ValueError as error:
        return None, f"its label can't be read: {first_line(error)}"
    if not isinstance(record, dict):
        return (None if record is None else [record]), None
    keys = [key for key in LABEL_KEYS if key in record][:1] if targets is None else targets
    cells = [record.get(key) for key in keys]
    return (cells if any(cell is not None for cell in cells) else None), None
