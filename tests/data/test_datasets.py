"""Data sets of libraries. torchvision's own download code runs against a server on loopback."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from headstart.core.errors import UserError
from headstart.data.sources import Digits, Torchvision

NAMES = [f"class {i}" for i in range(10)]


def test_digits() -> None:
    digits = Digits()
    items = list(digits.images())
    assert len(items) == 1797
    image, label = digits.read(items[3].source)
    assert (image.mode, image.size, label, items[3].label) == ("L", (8, 8), "3", "3")
    assert np.asarray(image).max() > 200


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a CIFAR10 archive of a few images, as its authors pack it."""
    rng, batches = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batches[name] = pickle.dumps({"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 1, 2, 9]})
    batches["batches.meta"] = pickle.dumps({"label_names": NAMES})
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served" / "cifar.tgz", "w:gz") as archive:
        for name, content in batches.items():
            about = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}  # noqa: S324  (torchvision's)
    whole = hashlib.md5((tmp_path / "served" / "cifar.tgz").read_bytes()).hexdigest()  # noqa: S324
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tgz")
    monkeypatch.setattr(datasets.CIFAR10, "filename", "cifar.tgz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", whole)
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("cifar")
def test_torchvision_downloads(tmp_path: Path) -> None:
    source = Torchvision("CIFAR10", tmp_path / "cache")
    items = list(source.images())
    assert [item.split for item in items] == ["train"] * 20 + ["test"] * 4
    assert len({item.source for item in items}) == 24
    image, label = source.read(items[3].source)
    assert (image.size, label) == ((32, 32), "class 9")
    assert source.in_memory
    assert pickle.loads(pickle.dumps(source.read))(items[3].source).label == label  # noqa: S301


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tgz")
    with pytest.raises(UserError, match=r"torchvision:CIFAR10 can't be downloaded .*Run this once where the network"):
        Torchvision("CIFAR10", tmp_path)


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*CIFAR10"):
        Torchvision("CIFAR11", tmp_path)


class Named:
    """A data set with named splits, as most of torchvision's have; those in ``available``."""

    available: tuple[str, ...] = ()
    classes = (("tabby", "cat"), "dog")

    def __init__(self, root: Path, split: str = "train", download: bool = False) -> None:  # noqa: ARG002
        if split not in self.available:
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are {self.available}.")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        if i == 1:
            raise OSError("broken")
        return Image.new("RGB", (4, 4)), i


@pytest.mark.parametrize(
    ("available", "splits"),
    [
        (("train", "val", "test"), ["train", "train", "validation", "validation", "test", "test"]),
        (("trainval", "test"), ["train", "train", "test", "test"]),
        (("train", "trainval", "valid"), ["train", "train", "validation", "validation"]),
    ],
)
def test_official_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: tuple[str, ...], splits: list[str]
) -> None:
    monkeypatch.setattr(Named, "available", available)
    monkeypatch.setattr(datasets, "Food101", Named)
    source = Torchvision("Food101", tmp_path)
    items = list(source.images())
    assert [item.split for item in items] == splits
    assert source.read(items[0].source).label == "tabby, cat"
    assert not source.in_memory


def test_data_sets_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchvision:EMNIST has no training split"):
        Torchvision("EMNIST", tmp_path)
