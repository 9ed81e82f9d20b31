"""Work in other processes gives what work here gives, in order, and takes no more chunks than it can hold."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.libraries import workers
from headstart.libraries.images import Decoder
from headstart.libraries.sources import ImageFolder
from headstart.libraries.workers import in_order


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def process_of(_: int) -> int:
    return os.getpid()


def test_workers_decode_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS_BEFORE_WORKERS", 0.0)
    (tmp_path / "a").mkdir()
    names = [f"a/{i}.png" for i in range(30)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 6), (i, 2 * i, 3 * i)).save(tmp_path / name)
    (tmp_path / "a/7.png").write_bytes(b"")
    decoder = Decoder(ImageFolder(tmp_path).read, halved, frozenset())
    chunks = [names[i : i + 4] for i in range(0, 30, 4)]
    there = [each for outcomes in in_order(decoder, chunks, workers=2, preload=["PIL.Image"]) for each in outcomes]
    here = decoder(names)
    assert [each.source for each in there] == names
    assert there[7].problem == "the file is empty"
    for one, other in zip(there, here, strict=True):
        assert (one.sha256, one.width, one.problem) == (other.sha256, other.width, other.problem)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_chunks_are_taken_as_results_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS_BEFORE_WORKERS", 0.0)
    taken = 0

    def chunks() -> Iterator[int]:
        nonlocal taken
        while taken < 40:
            taken += 1
            yield taken

    processes = set()
    for done, process in enumerate(in_order(process_of, chunks(), workers=2, preload=["PIL.Image"]), start=1):
        assert taken <= done + 4
        processes.add(process)
    assert done == 40
    assert len(processes - {os.getpid()}) in (1, 2)


def test_little_work_is_done_here() -> None:
    assert set(in_order(process_of, range(5), workers=4, preload=["PIL.Image"])) == {os.getpid()}
