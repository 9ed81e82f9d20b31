"""Shards: files of packed images, one after the other, with an index that says where each one is."""

import io
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

Store = Literal["raw", "jpeg"]
STORES: tuple[Store, ...] = get_args(Store)
# One image of index.npy, 40 bytes: where its bytes are and their checksum, then what training needs to know of it.
INDEX_DTYPE = np.dtype([
    ("id", "<u8"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4"), ("shard", "<u4"),
    ("label", "<u4"), ("height", "<u2"), ("width", "<u2"), ("split", "i1"),
], align=True)  # fmt: skip


LONGEST_SIDE = 2**16 - 1
"""Of a stored image, in pixels: what the index has room for."""


class ShardEntry(NamedTuple):
    """A packed image of a shard: the position, size and checksum of its bytes, and its height and width in pixels."""

    shard: int
    offset: int
    bytes: int
    crc32: int
    height: int
    width: int


@dataclass(frozen=True)
class Shards:
    """The shards of a folder and their index. A shard is memory-mapped, an image's checksum verified, at first use."""

    folder: Path
    store: Store
    index: NDArray[np.void]
    _mapped: dict[int, mmap.mmap] = field(default_factory=dict, init=False)

    @cached_property
    def _verified(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.index), bool)

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Return an image, uint8 (height, width, 3), read-only; raises ValueError if it is damaged, or OSError."""
        _, offset, size, crc32, shard, _, height, width, _ = self.index[row].item()
        stored = np.frombuffer(self._map(shard), np.uint8, size, offset)
        if not self._verified[row]:
            if zlib.crc32(stored.data) != crc32:
                raise ValueError("damaged")
            self._verified[row] = True
        if self.store == "raw":
            return stored.reshape(height, width, 3)
        return np.asarray(Image.open(io.BytesIO(stored.data)))

    def prefetch(self, rows: Iterable[int]) -> None:
        """Ask the kernel to read the images' bytes into its page cache, these alone and without waiting for them.

        Without it a first look at an image waits for the disk, and reads what lies around the image as well.
        """
        for row in rows:
            _, offset, size, _, shard, *_ = self.index[row].item()
            begin = offset - offset % mmap.PAGESIZE
            self._map(shard).madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._mapped:
            with shard_path(self.folder, shard).open("rb") as file:
                self._mapped[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._mapped[shard]


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


def read_index(folder: Path) -> NDArray[np.void]:
    """Memory-map a folder's index, ``INDEX_DTYPE`` (n,), in the manifest's order."""
    return np.asarray(np.load(folder / "index.npy", mmap_mode="r"))


def write_index(folder: Path, rows: Iterable[tuple[Any, ...]], count: int) -> None:
    """Write the index from tuples in the order of ``INDEX_DTYPE``, one in memory at a time."""
    write_array(folder / "index.npy", rows, INDEX_DTYPE, (count,))


def write_array(path: Path, rows: Iterable[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write a .npy file of ``shape`` row by row; to a memory map a full disk would be SIGBUS, and no exception."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, row in zip(range(shape[0]), rows, strict=True):
            file.write(np.asarray(row, dtype).tobytes())


def pack_image(image: Image.Image, store: Store) -> bytes:
    """Return the bytes that are stored of an RGB image.

    A photograph's JPEG of quality 95 without chroma subsampling is 6 (224 px) to 8 times (336 px) smaller than its
    pixels, and its root mean square error is 1.0 to 1.2 of 255. With quality 92 and 4:2:0 it would be 10 to 13 times
    smaller, with an error of 1.4 to 1.6.
    """
    if store == "raw":
        return image.tobytes()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:4:4")
    return file.getvalue()
