"""Packing: every image is decoded, resized and appended to a shard, unless an earlier run has done so already."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zlib import crc32

import numpy as np
import PIL
from PIL import Image

from headstart.core.io import atomic_write
from headstart.core.progress import Progress
from headstart.core.storage import storage_errors
from headstart.data.image_info import (
    LabelledImage,
    PackedImage,
    SourceContent,
    TrainingResize,
    content_sha256,
    describe,
    info_of,
    size_of,
    to_image,
    to_pixels,
)
from headstart.data.parallel import map_in_order
from headstart.data.reuse import PackedRow, ReusableRows, packed_path, write_packed
from headstart.data.shards import LONGEST_SIDE, ShardEntry, Store, pack_image, shard_header, shard_path
from headstart.data.source_item import SourceItem
from headstart.data.splits import NOT_GIVEN, TRAIN, assign_by_hash, group_number
from headstart.distributed.claims import claim_tasks
from headstart.distributed.process_group import ProcessGroup, cores_of_process
from headstart.images.arrays import ArrayInfo
from headstart.images.bands import PixelLayout, Pixels, preview
from headstart.images.decode import DEFAULT_LIMITS, NOTE, BadImageError, ImageLimits
from headstart.images.preprocess import Preprocessing

SHARD_IMAGES = 1024
FEWEST_SHARD_IMAGES = 64
SHARDS = 32
MOST_SHARDS = 2**16
SHARD_BYTES = 128 * 2**20
# A JPEG's bytes over its pixels' bytes, at most, for most photographs.
JPEG_FRACTION = 1 / 6
# Increase it when the stored pixels, or ``ImageInfo``, change for a reason that ``store_spec`` does not contain.
PIXELS_VERSION = 3
# Imported once for all worker processes.
PRELOAD = ("headstart.data.packing", "headstart.models.backbone", "headstart.data.sources")

logger = logging.getLogger(__name__)


def store_spec(
    config: dict[str, Any], train_scale: float | None, store: Store, layout: PixelLayout | None = None
) -> dict[str, Any]:
    """Return what determines the stored bytes beside the images and their splits: packed images are reused if equal."""
    side = None if train_scale is None else math.ceil(train_scale * max(config["input_size"][1:]))
    spec = {"input": config, "train_side": side, "store": store}
    if layout is not None:
        spec["layout"] = asdict(layout)
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


class BandResizes(NamedTuple):
    """Both resizes, of pixels with bands: ``evaluation`` needs no values to resize."""

    training: TrainingResize
    evaluation: Preprocessing

    def apply(self, pixels: Pixels, *, for_training: bool) -> Pixels:
        """Resize pixels (height, width, bands) as ``Resizes`` does images."""
        resized = self.training.of_bands(pixels) if for_training else self.evaluation.resized(pixels)
        return max(pixels, self.evaluation.resized(pixels), key=len) if resized is pixels else resized


@dataclass(frozen=True)
class ShardLists:
    """The images of each shard, in a file from which every process reads those of its own shards.

    ``offsets`` in the file are by the shards' numbers; ``images`` counts those of all shards.
    """

    path: Path
    offsets: dict[int, int]
    images: int

    @classmethod
    def write(cls, path: Path, shards: Iterable[tuple[int, list[SourceItem]]]) -> "ShardLists":
        """Write a line for each shard, given its number and images."""
        offsets, images = {}, 0
        with path.open("wb") as file:
            for shard, items in shards:
                offsets[shard], images = file.tell(), images + len(items)
                file.write(json.dumps([(each.source, each.split, each.group) for each in items]).encode() + b"\n")
        return cls(path, offsets, images)

    def read(self, shard: int) -> list[SourceItem]:
        """Read a shard's images."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[shard])
            return [SourceItem(source, None, split, group) for source, split, group in json.loads(file.readline())]


@dataclass(frozen=True)
class Packer:
    """Writes one shard per call; picklable, for other processes.

    ``read`` is ``Source.read``. ``fractions`` are those of ``fractions_to_draw``, to predict whether an image will be
    trained on; empty once the splits are decided. ``layout`` is that of images with bands, which ``of_bands`` resizes;
    None: they are RGB. ``workers`` are the processes of each rank, ``auto`` means one for each of its cores.
    """

    folder: Path
    lists: ShardLists
    read: Callable[[str], SourceContent]
    resizes: Resizes
    of_bands: BandResizes
    layout: PixelLayout | None
    fractions: Mapping[int, float]
    store: Store
    reusable: ReusableRows
    limits: ImageLimits
    workers: int | Literal["auto"]

    def __call__(self, shard: int) -> int:
        """Write a shard and the list of its images, bad ones with their problems; return how many images it has."""
        items = self.lists.read(shard)
        with atomic_write(shard_path(self.folder, shard)) as temporary, temporary.open("xb") as file:
            file.write(shard_header(self.store, self.layout))
            images = [self._pack(item, shard, file) for item in items]
            packed_path(self.folder, shard).unlink(missing_ok=True)  # first: it describes the old shard
        write_packed(self.folder, shard, images)
        return len(images)

    def _pack(self, item: SourceItem, shard: int, file: BinaryIO) -> PackedImage:
        try:
            content = self.read(item.source)
            sha256 = content_sha256(content)
            evaluated = item.split not in (None, "train")
            group_ids = np.array([group_number(item.group, bytes.fromhex(sha256))], np.uint64)
            for_training = not evaluated and bool(assign_by_hash(group_ids, self.fractions)[0] == TRAIN)
            certain = evaluated or not self.fractions
            reused = self.reusable.find(sha256, for_training=for_training, exact=certain)
            if reused:
                self.limits.check(reused.info.width, reused.info.height)
            row = reused or self._decode(content, for_training=for_training)
        except BadImageError as bad:
            return PackedImage(item.source, problem=str(bad))
        entry = ShardEntry(shard, file.tell(), len(row.packed), crc32(row.packed), row.stored_height, row.stored_width)
        file.write(row.packed)
        label = content.label if isinstance(content, LabelledImage) else None
        decoded = reused is None
        return PackedImage(item.source, label, sha256, row.info, row.for_training, decoded, entry, note=row.note)

    def _decode(self, content: SourceContent, *, for_training: bool) -> PackedRow:
        resized: Image.Image | Pixels
        if self.layout is None:
            image = to_image(content, self.limits)
            note = image.info.get(NOTE)
            resized = self.resizes.apply(image, for_training=for_training)
            width, height = resized.size
        else:
            pixels, note = to_pixels(content, self.layout, self.limits)
            image = preview(pixels)
            resized = self.of_bands.apply(pixels, for_training=for_training)
            height, width, _ = resized.shape
        if max(width, height) > LONGEST_SIDE:
            raise BadImageError(f"{image.width} x {image.height} pixels: too narrow to be stored: cut it into parts")
        return PackedRow(pack_image(resized, self.store), for_training, info_of(image), height, width, note)


def pack_shards(packer: Packer, process_group: ProcessGroup) -> None:
    """Write the shards of ``packer.lists``, together with the other ranks."""
    lists, workers = packer.lists, packer.workers
    if workers == "auto":
        workers = cores_of_process(process_group.local_world)
    numbers = list(lists.offsets)
    shards = (numbers[task] for task in claim_tasks(len(numbers), process_group))
    with (
        storage_errors(packer.folder),
        closing(packer.reusable),
        Progress("prepare", lists.images // process_group.world, shown=process_group.rank == 0) as progress,
    ):
        for images in map_in_order(packer, shards, workers=workers, preload=PRELOAD):
            progress.advance(images)


def sizes_of(
    sources: Iterable[str], read: Callable[[str], SourceContent], limits: ImageLimits = DEFAULT_LIMITS
) -> list[tuple[int, int]]:
    """Return width and height of images, in pixels, without decoding them; bad ones are left out."""
    sizes = []
    for source in sources:
        with suppress(BadImageError):
            sizes.append(size_of(read(source), limits))
    return sizes


def infos_of(
    sources: Iterable[str], read: Callable[[str], SourceContent], limits: ImageLimits = DEFAULT_LIMITS
) -> list[ArrayInfo]:
    """Return what images are, in pixels and bands, most without decoding them; bad ones are left out."""
    infos = []
    for source in sources:
        with suppress(BadImageError):
            infos.append(describe(read(source), limits))
    return infos


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
        layout: PixelLayout | None = None,
    ) -> "SizeEstimate":
        """Estimate from the sizes of a sample of images."""
        pixel = 3.0 if layout is None else float(layout.channels * np.dtype(layout.dtype).itemsize)
        pixels = [[1.0, 1.0]]
        for size in sizes:
            blank = Image.new("L", size)
            pixels.append([pixel * math.prod(resizes.apply(blank, for_training=use).size) for use in (True, False)])
        return cls(*np.mean(pixels[1:] or pixels, axis=0).tolist())

    def total(self, given: Mapping[int, int], drawn: float) -> float:
        """Return the bytes of all images.

        ``given`` counts the images of each split that the source assigns; the fraction ``drawn`` of the others goes to
        validation and test.
        """
        evaluated = sum(count for split, count in given.items() if split not in (NOT_GIVEN, TRAIN))
        others = sum(given.values()) - evaluated
        return (evaluated + others * drawn) * self.evaluation + others * (1 - drawn) * self.training

    def shard_images(self, store: Store, count: int) -> int:
        """Return how many of ``count`` images a shard has: 1,024, but a 32nd of few, and no more than 128 MiB hold.

        A shard is what a process packs at a time: with fewer shards many processes would have nothing to do, with more
        than some ten thousand folders get slow, so that of very many images it has more.
        """
        mean = max(self.training, self.evaluation) * (1 if store == "raw" else JPEG_FRACTION)
        of_all = 1 << (count // SHARDS).bit_length()  # a power of two, so that few further images move no others
        of_most = max(SHARD_IMAGES, count // MOST_SHARDS)
        return max(1, min(of_most, max(FEWEST_SHARD_IMAGES, of_all), int(SHARD_BYTES / mean)))


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
