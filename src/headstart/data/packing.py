"""The rows that earlier runs packed, by the sha256 of their sources, so that nothing is decoded twice.

They lie in the store that is there and in the shards that killed runs finished.
"""

import logging
import math
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zlib import crc32

import numpy as np
import PIL
from PIL import Image

from headstart.core.io import atomic_write, read_json, write_json
from headstart.data.dataset import SPLITS, manifest_rows
from headstart.data.image_info import (
    ImageInfo,
    LabelledImage,
    PackedImage,
    TrainingResize,
    content_sha256,
    info_of,
    size_of,
    to_image,
)
from headstart.data.shards import ShardEntry, Store, checksum, packed, read_index, shard_path
from headstart.data.sources import SourceItem
from headstart.data.splits import NOT_GIVEN, TRAIN, assign_by_hash, group_number
from headstart.images.decode import BadImageError

# What made a killed run's shards, and beside each finished one its rows; in the folder `work` beside the shards.
MADE = Path("work/made.json")
ROWS = np.dtype(
    [
        ("sha256", "V32"),
        ("training", "?"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("phash", "U16"),
        ("contrast", "<f8"),
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("crc32", "<u4"),
        ("stored_height", "<u2"),
        ("stored_width", "<u2"),
    ]
)
SCHEMA = """
CREATE TABLE rows (
    sha256 BLOB, training, width, height, phash, contrast,
    shard, offset, bytes, crc32, stored_height, stored_width, folder,
    PRIMARY KEY (sha256, training)
) WITHOUT ROWID
"""


class EarlierRow(NamedTuple):
    """A row as it was packed, for training or not, what its image looks like, and its size in pixels as stored."""

    packed: bytes
    training: bool
    look: ImageInfo
    stored_height: int
    stored_width: int


class EarlierRows:
    """Rows that are there already; a row whose bytes are damaged is as if it were not.

    Worker processes can have a copy, which opens the index by itself.
    """

    def __init__(self, index: Path, made: dict[str, Any]) -> None:
        """Begin an index.

        Args:
            index: a new file.
            made: what the pixels follow from beside the images; rows of other ones are not taken.
        """
        self._index, self._made = index, made
        self._folders: list[Path] = []
        self._database: sqlite3.Connection | None = None
        with sqlite3.connect(index) as database:
            database.execute(SCHEMA)
        database.close()

    def add(self, folder: Path) -> int:
        """Take the rows of a store, or of what a killed run left, that are not known yet; give their number."""
        number = len(self._folders)
        self._folders.append(folder)
        rows = ((*row, number) for row in (_finished(folder, self._made) or _left(folder, self._made)))
        with sqlite3.connect(self._index) as database:
            database.execute("PRAGMA synchronous=OFF")
            added = database.executemany(
                "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
        database.close()
        return added.rowcount

    def find(self, sha256: bytes, *, training: bool, certain: bool) -> EarlierRow | None:
        """Return an image's row.

        Args:
            sha256: of the image's source.
            training: the row that is wanted: the one for training, or the one for evaluation.
            certain: whether the other one is of no use.
        """
        rows = self._connected().execute(
            "SELECT folder, shard, offset, bytes, crc32, training, stored_height, stored_width, "
            "width, height, phash, contrast "
            "FROM rows WHERE sha256 = ? AND (training = ? OR NOT ?) ORDER BY training = ? DESC",
            (sha256, training, certain, training),
        )
        for folder, shard, offset, size, expected, of_training, height, width, *look in rows:
            packed = _read(shard_path(self._folders[folder], shard), offset, size)
            if zlib.crc32(packed) == expected:
                return EarlierRow(packed, bool(of_training), ImageInfo(*look), height, width)
        return None

    def close(self) -> None:
        """Close the index."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(f"{self._index.resolve().as_uri()}?mode=ro", uri=True)
        return self._database


def write_rows(folder: Path, shard: int, outcomes: list[PackedImage]) -> None:
    """Say which rows a finished shard has, for a run that comes after a kill."""
    rows = [
        (outcome.sha256, outcome.training, *outcome.look, *outcome.row)
        for outcome in outcomes
        if outcome.look is not None and outcome.row is not None
    ]
    with atomic_write(_rows_path(folder, shard)) as aside, aside.open("wb") as file:
        np.save(file, np.array(rows, ROWS))


def forget_rows(folder: Path, shard: int) -> None:
    """Take back what ``write_rows`` said."""
    _rows_path(folder, shard).unlink(missing_ok=True)


def is_made(about: Path, made: dict[str, Any]) -> bool:
    """Tell whether a JSON file is there and says, perhaps among other things, how rows were made."""
    return about.exists() and made == {key: value for key, value in read_json(about).items() if key in made}


def _rows_path(folder: Path, shard: int) -> Path:
    return folder / "work" / f"rows-{shard:05d}.npy"


def _left(folder: Path, made: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """List the rows of a killed run's finished shards."""
    if is_made(folder / MADE, made):
        for path in sorted((folder / "work").glob("rows-*.npy")):
            yield from map(tuple, np.load(path).tolist())


def _finished(folder: Path, made: dict[str, Any]) -> Iterator[tuple[Any, ...]] | None:
    """List the rows of a whole store; None where there is none that is of use."""
    if not is_made(folder / "dataset.json", made):
        return None
    checksums = read_json(folder / "dataset.json")["crc32"]
    if any(checksum(folder / name) != crc32 for name, crc32 in checksums.items()):
        return None
    return _of_store(folder)


def _of_store(folder: Path) -> Iterator[tuple[Any, ...]]:
    train = SPLITS.index("train")
    for row, place in zip(manifest_rows(folder), read_index(folder), strict=True):
        _, offset, size, crc32, shard, _, height, width, split = place.item()
        look = ImageInfo(int(row["width"]), int(row["height"]), row["phash"], float(row["contrast"]))
        yield bytes.fromhex(row["sha256"]), split == train, *look, shard, offset, size, crc32, height, width


def _read(path: Path, offset: int, size: int) -> bytes:
    """Read a part of a file; what is not there is left out."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""


SHARD_IMAGES = 1024
SHARD_BYTES = 128 * 2**20
JPEG_SHARE = 1 / 6  # of the pixels' bytes, at most, for most photographs
# To be raised when the pixels of an image, or what is noted of it, change for another reason than ``made_by`` names.
PIXELS_VERSION = 3

logger = logging.getLogger(__name__)


def made_by(config: dict[str, Any], train_scale: float | None, store: Store) -> dict[str, Any]:
    """Tell what the stored bytes follow from, beside the images and their splits."""
    side = None if train_scale is None else math.ceil(train_scale * max(config["input_size"][1:]))
    about = {"input": config, "train_side": side, "store": store}
    return {**about, "pillow": PIL.__version__, "pixels_version": PIXELS_VERSION}


class Resizes(NamedTuple):
    """How training images are resized, and how those of validation and test."""

    training: TrainingResize
    evaluation: Callable[[Image.Image], Image.Image]

    def of(self, image: Image.Image, *, training: bool) -> Image.Image:
        """Resize an RGB image; one smaller than evaluation's is enlarged as for evaluation.

        Random crops have whole pixels for edges, and of an 8 x 8 digit's there are few.
        """
        resized = self.training(image) if training else self.evaluation(image)
        return max(image, self.evaluation(image), key=lambda each: each.height) if resized is image else resized


@dataclass(frozen=True)
class Packer:
    """Decodes images into one shard a call; picklable, so that worker processes can have it.

    Attributes:
        folder: of the shards.
        read: gives a file's bytes, or a labelled image, by its source name; raises BadImageError.
        resizes: of an RGB image.
        shares: of the splits that are drawn, by which a training image's split is foreseen.
        store: how rows are packed.
        earlier: rows that need no decoding.
    """

    folder: Path
    read: Callable[[str], bytes | LabelledImage]
    resizes: Resizes
    shares: Mapping[int, float]
    store: Store
    earlier: EarlierRows

    def __call__(self, task: tuple[int, list[SourceItem]]) -> list[PackedImage]:
        """Write a shard, given its number and images; a bad one is an outcome with a problem, never an exception."""
        shard, pictures = task
        with atomic_write(shard_path(self.folder, shard)) as aside, aside.open("xb") as file:
            outcomes = [self._pack(picture, shard, file) for picture in pictures]
            forget_rows(self.folder, shard)
        write_rows(self.folder, shard, outcomes)
        return outcomes

    def _pack(self, picture: SourceItem, shard: int, file: BinaryIO) -> PackedImage:
        try:
            content = self.read(picture.source)
            sha256 = content_sha256(content)
            training, certain = self._foreseen(picture, sha256)
            found = self.earlier.find(sha256, training=training, certain=certain)
            row = found or self._decoded(content, training=training)
        except BadImageError as bad:
            return PackedImage(picture.source, problem=str(bad))
        place = ShardEntry(shard, file.tell(), len(row.packed), crc32(row.packed), row.stored_height, row.stored_width)
        file.write(row.packed)
        label = content.label if isinstance(content, LabelledImage) else None
        return PackedImage(
            picture.source, None, label, sha256, row.look, row.training, decoded=found is None, row=place
        )

    def _foreseen(self, picture: SourceItem, sha256: bytes) -> tuple[bool, bool]:
        """Tell whether an image will be trained on, and whether that is certain."""
        if picture.split not in (None, "train"):
            return False, True
        unit = np.array([group_number(picture.group, sha256)], np.uint64)
        return bool(assign_by_hash(unit, self.shares)[0] == TRAIN), not self.shares

    def _decoded(self, content: bytes | LabelledImage, *, training: bool) -> EarlierRow:
        image = to_image(content)
        resized = self.resizes.of(image, training=training)
        return EarlierRow(packed(resized, self.store), training, info_of(image), resized.height, resized.width)


@contextmanager
def resuming(final: Path) -> Iterator[Path]:
    """Return a folder to write aside, with ``work`` in it for what shall not stay.

    What runs that failed or were killed left of it is in its folder ``left``, each run's in a folder of its own.
    """
    with atomic_write(final, resumable=True) as aside:
        work, left = aside / "work", aside / "left"
        left.mkdir(parents=True, exist_ok=True)
        generation = left / f"{max((int(each.name) for each in left.iterdir()), default=0) + 1:05d}"
        generation.mkdir()
        for path in aside.iterdir():
            if path != left:
                path.rename(generation / path.name)
        work.mkdir()
        try:
            yield aside
        except BaseException:
            if not any(aside.rglob("rows-*.npy")):  # nothing to go on with
                shutil.rmtree(aside)
            raise
        shutil.rmtree(left)
        shutil.rmtree(work)


def earlier_rows(folder: Path, final: Path, made: dict[str, Any]) -> EarlierRows:
    """Index the rows of the store that is there and of what ``resuming`` set aside; note what makes the new ones."""
    earlier = EarlierRows(folder / "work" / "earlier.sqlite", made)
    earlier.add(final)
    for generation in sorted((folder / "left").iterdir(), reverse=True):
        if not earlier.add(generation):
            shutil.rmtree(generation)
    write_json(folder / MADE, made)
    return earlier


def is_there(folder: Path, final: Path, made: dict[str, Any]) -> bool:
    """Tell whether the store that is there, or one that ``resuming`` set aside, was made in a way."""
    return any(is_made(path, made) for path in (final / "dataset.json", *(folder / "left").glob(f"*/{MADE}")))


@dataclass(frozen=True)
class Estimate:
    """How large the store will be as pixels.

    Attributes:
        training: mean bytes of a training image.
        evaluation: mean bytes of an image of validation or test.
    """

    training: float
    evaluation: float

    @classmethod
    def of(cls, sources: Iterable[str], read: Callable[[str], bytes | LabelledImage], resizes: Resizes) -> "Estimate":
        """Resize blank images of the sizes that some sources have."""
        sizes = [[1.0, 1.0]]
        for source in sources:
            try:
                blank = Image.new("L", size_of(read(source)))
            except BadImageError:
                continue
            sizes.append([3.0 * math.prod(resizes.of(blank, training=training).size) for training in (True, False)])
        return cls(*np.mean(sizes[1:] or sizes, axis=0).tolist())

    def total(self, given: Mapping[int, int], drawn: float) -> float:
        """Return the bytes of all images.

        Args:
            given: how many there are of each split that the source gives.
            drawn: share of the others that validation and test are drawn from.
        """
        evaluated = sum(count for split, count in given.items() if split not in (NOT_GIVEN, TRAIN))
        others = sum(given.values()) - evaluated
        return (evaluated + others * drawn) * self.evaluation + others * (1 - drawn) * self.training

    def shard_images(self, store: Store) -> int:
        """Return the images of a shard: 128 MiB, and 1,024 at most."""
        mean = max(self.training, self.evaluation) * (1 if store == "raw" else JPEG_SHARE)
        return max(1, min(SHARD_IMAGES, int(SHARD_BYTES / mean)))


def choose_store(wanted: Literal["auto"] | Store, size: float, folder: Path, *, was: Store | None) -> Store:
    """Choose how rows are packed, and say why where nobody asked for one.

    Args:
        wanted: ``prepare.store``.
        size: of all pixels, in bytes.
        folder: on the disk that is written to.
        was: how a store that is there is packed. JPEGs stay so; of pixels, free disk is all that a new one needs.
    """
    if wanted != "auto":
        return wanted
    if was == "jpeg":
        return "jpeg"
    disk, memory = shutil.disk_usage(folder).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = size <= min(disk if was else disk / 2, memory / 2)
    logger.info(
        "stored as %s: the pixels take about %.2f GB; free disk is %.1f GB, memory %.1f GB",
        *("pixels" if fits else "JPEGs", size / 1e9, disk / 1e9, memory / 1e9),
    )
    return "raw" if fits else "jpeg"
