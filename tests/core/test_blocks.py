from pathlib import Path

import numpy as np
import pytest

from headstart.core import blocks
from headstart.core.blocks import by_blocks, row_blocks, stored_rows, write_rows


def test_blocks_are_all_rows_in_their_order_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1000)
    for shape in ((0, 3), (1, 3), (100, 3), (101, 36), (7, 100_000)):
        slices = list(row_blocks(shape))
        assert [i for each in slices for i in range(*each.indices(shape[0]))] == list(range(shape[0]))
        assert all((each.stop - each.start) * shape[1] <= max(1000, shape[1]) for each in slices)


def test_what_is_written_in_blocks_is_read_in_others(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((50, 3), np.float32)
    parts = [matrix[:20], matrix[20:20], np.asfortranarray(matrix[20:])]
    written = write_rows(tmp_path / "rows.npy", parts, matrix.shape)
    for rows in (written, stored_rows(tmp_path / "rows.npy")):
        assert (rows.shape, len(rows)) == (matrix.shape, 50)
        for part in (slice(10, 30), slice(None), slice(49, 50)):
            np.testing.assert_array_equal(rows[part], matrix[part])
            assert type(rows[part]) is np.ndarray  # no map of the file stays
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), matrix)


def test_a_function_of_rows_sees_one_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1000)
    generator = np.random.default_rng(0)
    matrix, others, seen = generator.random((200, 3)), generator.random(200), list[int]()

    def weighted(block: np.ndarray, of_block: np.ndarray) -> np.ndarray:
        seen.append(len(block))
        return np.asarray(block * of_block[:, None])

    np.testing.assert_array_equal(by_blocks(weighted, matrix, others), matrix * others[:, None])
    assert max(seen) < 20
    assert by_blocks(weighted, matrix[:0], others[:0]).shape == (0, 3)
