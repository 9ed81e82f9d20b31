"""The folder of packed pictures while it is written: shard after shard, each by one call, in any process."""

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zlib import crc32

import numpy as np
import PIL
from PIL import Image

from headstart.assembly.earlier_rows import MADE, EarlierRow, EarlierRows, forget_rows, is_made, write_rows
from headstart.ground.artifacts import replacing, write_json
from headstart.ground.shards import Row, Store, packed, shard_path
from headstart.libraries.decoding import BadImageError
from headstart.libraries.images import (
    LabelledImage,
    Outcome,
    TrainingResize,
    content_sha256,
    look_of,
    size_of,
    to_image,
)
from headstart.libraries.sources import Picture
from headstart.libraries.splits import NOT_GIVEN, TRAIN, placed, unit_number

SHARD_PICTURES = 1024
SHARD_BYTES = 128 * 2**20
JPEG_SHARE = 1 / 6  # of the pixels' bytes, at most, for most photographs
# To be raised when the pixels of a picture, or what is noted of it, change for another reason than ``made_by`` names.
PIXELS_VERSION = 3

logger = logging.getLogger(__name__)


def made_by(config: dict[str, Any], train_scale: float | None, store: Store) -> dict[str, Any]:
    """Tell what the stored bytes follow from, beside the pictures and their splits."""
    side = None if train_scale is None else math.ceil(train_scale * max(config["input_size"][1:]))
    about = {"input": config, "train_side": side, "store": store}
    return {**about, "pillow": PIL.__version__, "pixels_version": PIXELS_VERSION}


class Resizes(NamedTuple):
    """How training pictures are resized, and how those of validation and test."""

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
    """Decodes pictures into one shard a call; picklable, so that worker processes can have it.

    Attributes:
        folder: of the shards.
        read: gives a file's bytes, or a labelled image, by its source name; raises BadImageError.
        resizes: of an RGB image.
        shares: of the splits that are drawn, by which a training picture's split is foreseen.
        store: how rows are packed.
        earlier: rows that need no decoding.
    """

    folder: Path
    read: Callable[[str], bytes | LabelledImage]
    resizes: Resizes
    shares: Mapping[int, float]
    store: Store
    earlier: EarlierRows

    def __call__(self, task: tuple[int, list[Picture]]) -> list[Outcome]:
        """Write a shard, given its number and pictures; a bad one is an outcome with a problem, never an exception."""
        shard, pictures = task
        with replacing(shard_path(self.folder, shard)) as aside, aside.open("xb") as file:
            outcomes = [self._pack(picture, shard, file) for picture in pictures]
            forget_rows(self.folder, shard)
        write_rows(self.folder, shard, outcomes)
        return outcomes

    def _pack(self, picture: Picture, shard: int, file: BinaryIO) -> Outcome:
        try:
            content = self.read(picture.source)
            sha256 = content_sha256(content)
            training, certain = self._foreseen(picture, sha256)
            found = self.earlier.find(sha256, training=training, certain=certain)
            row = found or self._decoded(content, training=training)
        except BadImageError as bad:
            return Outcome(picture.source, problem=str(bad))
        place = Row(shard, file.tell(), len(row.packed), crc32(row.packed), row.stored_height, row.stored_width)
        file.write(row.packed)
        label = content.label if isinstance(content, LabelledImage) else None
        return Outcome(picture.source, None, label, sha256, row.look, row.training, decoded=found is None, row=place)

    def _foreseen(self, picture: Picture, sha256: bytes) -> tuple[bool, bool]:
        """Tell whether a picture will be trained on, and whether that is certain."""
        if picture.split not in (None, "train"):
            return False, True
        unit = np.array([unit_number(picture.group, sha256)], np.uint64)
        return bool(placed(unit, self.shares)[0] == TRAIN), not self.shares

    def _decoded(self, content: bytes | LabelledImage, *, training: bool) -> EarlierRow:
        image = to_image(content)
        resized = self.resizes.of(image, training=training)
        return EarlierRow(packed(resized, self.store), training, look_of(image), resized.height, resized.width)


@contextmanager
def resuming(final: Path) -> Iterator[Path]:
    """Give a folder to write aside, with ``work`` in it for what shall not stay.

    What runs that failed or were killed left of it is in its folder ``left``, each run's in a folder of its own.
    """
    with replacing(final, resumable=True) as aside:
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
        training: mean bytes of a training picture.
        evaluation: mean bytes of a picture of validation or test.
    """

    training: float
    evaluation: float

    @classmethod
    def of(cls, sources: Iterable[str], read: Callable[[str], bytes | LabelledImage], resizes: Resizes) -> "Estimate":
        """Resize blank pictures of the sizes that some sources have."""
        sizes = [[1.0, 1.0]]
        for source in sources:
            try:
                blank = Image.new("L", size_of(read(source)))
            except BadImageError:
                continue
            sizes.append([3.0 * math.prod(resizes.of(blank, training=training).size) for training in (True, False)])
        return cls(*np.mean(sizes[1:] or sizes, axis=0).tolist())

    def total(self, given: Mapping[int, int], drawn: float) -> float:
        """Give the bytes of all pictures.

        Args:
            given: how many there are of each split that the source gives.
            drawn: share of the others that validation and test are drawn from.
        """
        evaluated = sum(count for split, count in given.items() if split not in (NOT_GIVEN, TRAIN))
        others = sum(given.values()) - evaluated
        return (evaluated + others * drawn) * self.evaluation + others * (1 - drawn) * self.training

    def shard_pictures(self, store: Store) -> int:
        """Give the pictures of a shard: 128 MiB, and 1,024 at most."""
        mean = max(self.training, self.evaluation) * (1 if store == "raw" else JPEG_SHARE)
        return max(1, min(SHARD_PICTURES, int(SHARD_BYTES / mean)))


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
