"""Packing: every image is decoded, resized and appended to a shard, unless an earlier run has done so already."""

import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zlib import crc32

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from headstart.core.errors import UserError
from headstart.core.io import atomic_write
from headstart.core.progress import Progress
from headstart.data.image_info import (
    LabelledImage,
    PackedImage,
    TrainingResize,
    content_sha256,
    info_of,
    size_of,
    to_image,
)
from headstart.data.index import Catalog
from headstart.data.parallel import map_in_order
from headstart.data.reuse import PackedRow, ReusableRows, shard_rows_path, write_shard_rows
from headstart.data.shards import LONGEST_SIDE, ShardEntry, Store, pack_image, shard_path
from headstart.data.source_item import SourceItem
from headstart.data.splits import NOT_GIVEN, TRAIN, assign_by_hash, group_number
from headstart.images.decode import DEFAULT_LIMITS, NOTE, BadImageError, ImageLimits, Note

SHARD_IMAGES = 1024
SHARD_BYTES = 128 * 2**20
# A JPEG's bytes over its pixels' bytes, at most, for most photographs.
JPEG_FRACTION = 1 / 6
# Increase it when the stored pixels, or ``ImageInfo``, change for a reason that ``store_spec`` does not contain.
PIXELS_VERSION = 3
# Imported once for all worker processes.
PRELOAD = ("headstart.data.packing", "headstart.models.backbone", "headstart.data.sources")

logger = logging.getLogger(__name__)


def store_spec(config: dict[str, Any], train_scale: float | None, store: Store) -> dict[str, Any]:
    """Return what determines the stored bytes beside the images and their splits: packed images are reused if equal."""
    side = None if train_scale is None else math.ceil(train_scale * max(config["input_size"][1:]))
    spec = {"input": config, "train_side": side, "store": store}
    return {**spec, "pillow": PIL.__version__, "pixels_version": PIXELS_VERSION}


class Resizes(NamedTuple):
    """The resize of training images, and that of validation and test images."""

    training: TrainingResize
    evaluation: Callable[[Image.Image], Image.Image]

    def apply(self, image: Image.Image, *, for_training: bool) -> Image.Image:
        """Resize an RGB image; for training, one smaller than evaluation's size is enlarged to that.

        Random crops have whole pixels for edges, and an 8 x 8 digit leaves few to choose from.
        """
        resized = self.training(image) if for_training else self.evaluation(image)
        return max(image, self.evaluation(image), key=lambda each: each.height) if resized is image else resized


@dataclass(frozen=True)
class Packer:
    """Writes one shard per call; picklable, for worker processes.

    ``read`` is ``Source.read``. ``fractions`` are those of ``fractions_to_draw``, to predict whether an image will be
    trained on; empty once the splits are decided.
    """

    folder: Path
    read: Callable[[str], bytes | LabelledImage]
    resizes: Resizes
    fractions: Mapping[int, float]
    store: Store
    reusable: ReusableRows
    limits: ImageLimits

    def __call__(self, task: tuple[int, list[SourceItem]]) -> list[PackedImage]:
        """Write a shard, given its number and images; a bad image yields a result with a problem, no exception."""
        shard, items = task
        with atomic_write(shard_path(self.folder, shard)) as temporary, temporary.open("xb") as file:
            images = [self._pack(item, shard, file) for item in items]
            shard_rows_path(self.folder, shard).unlink(missing_ok=True)  # first: they describe the old shard
        write_shard_rows(self.folder, shard, images)
        return images

    def _pack(self, item: SourceItem, shard: int, file: BinaryIO) -> PackedImage:
        try:
            content = self.read(item.source)
            sha256 = content_sha256(content)
            evaluated = item.split not in (None, "train")
            group_ids = np.array([group_number(item.group, sha256)], np.uint64)
            for_training = not evaluated and bool(assign_by_hash(group_ids, self.fractions)[0] == TRAIN)
            certain = evaluated or not self.fractions
            reused = self.reusable.find(sha256, for_training=for_training, exact=certain)
            if reused:
                row, note = reused, self.reusable.notes.get(sha256.hex())
                self.limits.check(row.info.width, row.info.height)
            else:
                row, note = self._decode(content, for_training=for_training)
        except BadImageError as bad:
            return PackedImage(item.source, problem=str(bad))
        entry = ShardEntry(shard, file.tell(), len(row.packed), crc32(row.packed), row.stored_height, row.stored_width)
        file.write(row.packed)
        label = content.label if isinstance(content, LabelledImage) else None
        return PackedImage(item.source, label, sha256, row.info, row.for_training, reused is None, entry, note=note)

    def _decode(self, content: bytes | LabelledImage, *, for_training: bool) -> tuple[PackedRow, Note | None]:
        image = to_image(content, self.limits)
        note: Note | None = image.info.get(NOTE)
        resized = self.resizes.apply(image, for_training=for_training)
        if max(resized.size) > LONGEST_SIDE:
            raise BadImageError(f"{image.width} x {image.height} pixels: too narrow to be stored: cut it into parts")
        packed = pack_image(resized, self.store)
        return PackedRow(packed, for_training, info_of(image), resized.height, resized.width), note


def pack_all(packer: Packer, catalog: Catalog, shard_images: int, workers: int) -> dict[str, Any]:
    """Pack every good image, in the order of source names; return figures for the report."""
    counts = Counter(decoded=0, reused=0)
    with Progress("prepare", catalog.count()) as progress:
        tasks = enumerate(catalog.batches(shard_images))
        for images in map_in_order(packer, tasks, workers=workers, preload=PRELOAD):
            counts.update(catalog.record(images))
            progress.advance(len(images))
        return {**counts, "images_per_second": round(progress.close(), 1)}


def repack(packer: Packer, catalog: Catalog, splits: NDArray[np.int8], workers: int) -> dict[str, Any]:
    """Rewrite the shards with an image whose split was not as predicted; return figures for the report.

    Raises UserError if an image changed after it was packed.
    """
    tasks = catalog.shards_to_repack(splits)
    first = list(islice(tasks, 1))
    if first:
        packer.reusable.close()
        packer.reusable.add(packer.folder)
    decided, decoded = replace(packer, fractions={}), 0
    for images in map_in_order(decided, chain(first, tasks), workers=workers, preload=PRELOAD):
        decoded += catalog.record(images)["decoded"]
    if catalog.count() != len(splits):
        raise UserError("prepare: images were changed while they were read: run it again")
    return {"decoded_again": decoded}


def sizes_of(
    sources: Iterable[str], read: Callable[[str], bytes | LabelledImage], limits: ImageLimits = DEFAULT_LIMITS
) -> list[tuple[int, int]]:
    """Return width and height of images, in pixels, without decoding them; bad ones are left out."""
    sizes = []
    for source in sources:
        with suppress(BadImageError):
            sizes.append(size_of(read(source), limits))
    return sizes


@dataclass(frozen=True)
class SizeEstimate:
    """An estimate of the store's size: the mean bytes of an image's pixels as stored for training and evaluation."""

    training: float
    evaluation: float

    @classmethod
    def of(
        cls,
        sizes: Iterable[tuple[int, int]],
        resizes: Resizes,
    ) -> "SizeEstimate":
        """Estimate from the sizes of a sample of images."""
        pixels = [[1.0, 1.0]]
        for size in sizes:
            blank = Image.new("L", size)
            pixels.append([3.0 * math.prod(resizes.apply(blank, for_training=use).size) for use in (True, False)])
        return cls(*np.mean(pixels[1:] or pixels, axis=0).tolist())

    def total(self, given: Mapping[int, int], drawn: float) -> float:
        """Return the bytes of all images.

        ``given`` counts the images of each split that the source assigns; the fraction ``drawn`` of the others goes to
        validation and test.
        """
        evaluated = sum(count for split, count in given.items() if split not in (NOT_GIVEN, TRAIN))
        others = sum(given.values()) - evaluated
        return (evaluated + others * drawn) * self.evaluation + others * (1 - drawn) * self.training

    def shard_images(self, store: Store) -> int:
        """Return the number of images in a shard: as many as 128 MiB hold, and at most 1,024."""
        mean = max(self.training, self.evaluation) * (1 if store == "raw" else JPEG_FRACTION)
        return max(1, min(SHARD_IMAGES, int(SHARD_BYTES / mean)))


def choose_store(wanted: Literal["auto"] | Store, size: float, folder: Path, *, previous: Store | None) -> Store:
    """Choose how ``size`` bytes of pixels are packed on the disk of ``folder``; log the reason if it was left open.

    If images of a ``previous`` store can be reused, JPEGs stay JPEGs, and pixels stay pixels if they fit on the disk.
    """
    if wanted != "auto":
        return wanted
    if previous == "jpeg":
        return "jpeg"
    disk, memory = shutil.disk_usage(folder).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = size <= min(disk if previous else disk / 2, memory / 2)
    logger.info(
        "stored as %s: the pixels take about %.2f GB; free disk is %.1f GB, memory %.1f GB",
        *("pixels" if fits else "JPEGs", size / 1e9, disk / 1e9, memory / 1e9),
    )
    return "raw" if fits else "jpeg"
