"""Matrices with a row for each image, which may be too large for memory: written as they come, read in blocks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES, VALUES_BESIDE = 2**22, 64
"""A block has about so many values, 32 MiB in float64, where each row counts for some more: what is made of it."""


@dataclass(frozen=True)
class Rows:
    """A matrix, float (n, width), of which only the rows that are asked for by a slice are in memory."""

    shape: tuple[int, int]
    read: Callable[[slice], NDArray[Any]]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.read(rows)


Matrix = NDArray[Any] | Rows
"""Float (n, width): an array, or what is read like one by slices of rows."""


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of rows that are a block each, over all rows of a matrix (n, width)."""
    rows, width = shape
    step = max(1, BLOCK_VALUES // (width + VALUES_BESIDE))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def by_blocks(function: Callable[..., NDArray[Any]], matrix: Matrix, *others: NDArray[Any]) -> NDArray[Any]:
    """Return what a function has for each row, of which a block is in memory at a time.

    It is called with blocks of the matrix (n, width) and of the same rows of the others (n, …), and returns a row each.
    """
    blocks = list(row_blocks(matrix.shape)) or [slice(0)]
    return np.concatenate([function(matrix[rows], *(each[rows] for each in others)) for rows in blocks])


def stored_rows(path: Path) -> Rows:
    """Return the matrix in a .npy file; it is mapped while rows are copied, and no longer."""
    shape = np.load(path, mmap_mode="r").shape
    return Rows(shape, lambda rows: np.array(np.load(path, mmap_mode="r")[rows]))


def write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file, whose rows follow as they come."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_rows(path: Path, blocks: Iterable[NDArray[np.float32]], shape: tuple[int, int]) -> Rows:
    """Write blocks of rows as a .npy file, float32 of ``shape``; to a memory map a full disk would be SIGBUS."""
    with path.open("wb") as file:
        write_header(file, np.dtype("<f4"), shape)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
    return stored_rows(path)
