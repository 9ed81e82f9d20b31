"""Shards: files of packed images, one after the other, with an index that says where each one is.

A shard begins with ``SHARD_HEADER`` bytes: a line of JSON that says how its images are stored, and spaces.
"""

import io
import json
import mmap
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.blocks import write_header
from headstart.core.errors import UserError
from headstart.images.bands import PixelLayout, Pixels

Store = Literal["raw", "jpeg"]
STORES: tuple[Store, ...] = get_args(Store)
# One image of index.npy, 40 bytes: where its bytes are and their checksum, then what training needs to know of it.
INDEX_DTYPE = np.dtype([
    ("id", "<u8"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4"), ("shard", "<u4"),
    ("label", "<u4"), ("height", "<u2"), ("width", "<u2"), ("split", "i1"),
], align=True)  # fmt: skip


LONGEST_SIDE = 2**16 - 1
"""Of a stored image, in pixels: what the index has room for."""
SHARD_HEADER = 128
"""Bytes of a shard before its first image."""


class ShardEntry(NamedTuple):
    """A packed image of a shard: the position, size and checksum of its bytes, and its height and width in pixels."""

    shard: int
    offset: int
    bytes: int
    crc32: int
    height: int
    width: int


class MappedShard(NamedTuple):
    """A memory-mapped shard: its bytes, and what its header says."""

    content: mmap.mmap
    store: Store
    dtype: np.dtype[Any]
    channels: int


@dataclass(frozen=True)
class Shards:
    """The shards of a folder and their index. A shard is memory-mapped, an image's checksum verified, at first use."""

    folder: Path
    index: NDArray[np.void]
    _mapped: dict[int, MappedShard] = field(default_factory=dict, init=False)

    @cached_property
    def _verified(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.index), bool)

    def pixels(self, row: int) -> Pixels:
        """Return an image (height, width, bands), read-only; raises ValueError if it is damaged, or OSError."""
        _, offset, size, crc32, shard, _, height, width, _ = self.index[row].item()
        content, store, dtype, channels = self._map(shard)
        stored = np.frombuffer(content, np.uint8, size, offset)
        if not self._verified[row]:
            if zlib.crc32(stored.data) != crc32:
                raise ValueError("damaged")
            self._verified[row] = True
        if store == "raw":
            pixels = stored.view(dtype).reshape(height, width, -1)
        else:
            pixels = np.asarray(Image.open(io.BytesIO(stored.data))).reshape(height, width, -1)
        # Of a grey image one channel is stored.
        return pixels if pixels.shape[2] == channels else np.broadcast_to(pixels, (height, width, channels))

    def prefetch(self, rows: Iterable[int]) -> None:
        """Ask the kernel to read the images' bytes into its page cache, these alone and without waiting for them.

        Without it a first look at an image waits for the disk, and reads what lies around the image as well.
        """
        for row in rows:
            _, offset, size, _, shard, *_ = self.index[row].item()
            begin = offset - offset % mmap.PAGESIZE
            self._map(shard).content.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)

    def _map(self, shard: int) -> MappedShard:
        if shard not in self._mapped:
            with shard_path(self.folder, shard).open("rb", buffering=0) as file:
                # Not from the mapping: a first look there reads up to the disk's whole read-ahead, often megabytes.
                about = json.loads(file.read(SHARD_HEADER))
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped[shard] = MappedShard(content, about["store"], np.dtype(about["dtype"]), about["channels"])
        return self._mapped[shard]


def shard_header(store: Store, layout: PixelLayout | None = None) -> bytes:
    """Return the first ``SHARD_HEADER`` bytes of a shard of images of a layout; None: RGB."""
    depth, channels = ("uint8", 3) if layout is None else (layout.dtype, layout.channels)
    about = json.dumps({"headstart_shard": 1, "store": store, "dtype": depth, "channels": channels})
    return about.ljust(SHARD_HEADER - 1).encode() + b"\n"


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / f"pixels-{shard:05d}.bin"


def checksum(path: Path) -> int | None:
    """Return the crc32 of a file's bytes; None if there is no such file."""
    if not path.is_file():
        return None
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32


def damaged(path: Path, what: str) -> UserError:
    """Return an error that explains how to restore a file; without ``touch`` DVC would not look at its content."""
    return UserError(
        f"{path} {what}. `chmod u+w {path}; touch {path}` makes DVC look at it again, then `dvc checkout --force "
        f"{path.parent}` gets it back from DVC's cache. If it is damaged there too, `rm -f {path}` and then `dvc repro "
        "-f prepare` decode its images again"
    )


def read_index(folder: Path) -> NDArray[np.void]:
    """Memory-map a folder's index, ``INDEX_DTYPE`` (n,), in the manifest's order."""
    return np.asarray(np.load(folder / "index.npy", mmap_mode="r"))


def write_index(folder: Path, rows: Iterable[tuple[Any, ...]], count: int) -> None:
    """Write the index from tuples in the order of ``INDEX_DTYPE``, one in memory at a time."""
    write_array(folder / "index.npy", rows, INDEX_DTYPE, (count,))


def write_array(path: Path, rows: Iterable[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write a .npy file of ``shape`` row by row; to a memory map a full disk would be SIGBUS, and no exception."""
    with path.open("wb") as file:
        write_header(file, dtype, shape)
        for _, row in zip(range(shape[0]), rows, strict=True):
            file.write(np.asarray(row, dtype).tobytes())


def pack_image(image: Image.Image | Pixels, store: Store) -> bytes:
    """Return the bytes that are stored of an RGB image, one channel where it is grey, or of pixels with bands.

    A photograph's JPEG of quality 95 without chroma subsampling is 6 (224 px) to 8 times (336 px) smaller than its
    pixels, and its root mean square error is 1.0 to 1.2 of 255. With quality 92 and 4:2:0 it would be 10 to 13 times
    smaller, with an error of 1.4 to 1.6.
    """
    if not isinstance(image, Image.Image):
        return np.ascontiguousarray(image).tobytes()
    red, *others = np.moveaxis(np.asarray(image), 2, 0)
    if all(np.array_equal(red, other) for other in others):
        image = image.getchannel(0)
    if store == "raw":
        return image.tobytes()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:4:4")
    return file.getvalue()
