"""WebDataset: tar files of the JPEGs, decoded by torchvision, feeding a plain loop."""

from pathlib import Path
from typing import Any

import torch
import webdataset
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.contestants import plain
from benchmarks.task import Task

SHARDS = 8  # more than workers, so that each has its own


def batches(task: Task) -> plain.Batches:
    """Return WebDataset's loader, of endless resampled shards as its documentation advises.

    The tar files are written where there are none yet.
    """
    folder = Path(task.work) / f"webdataset-{Path(task.images).name}"
    if not folder.exists():
        _write(folder, task)
    augment = plain.crop_and_flip(task)

    def example(entry: dict[str, Any]) -> tuple[Tensor, int]:
        encoded = torch.frombuffer(bytearray(entry["jpg"]), dtype=torch.uint8)
        return augment(decode_jpeg(encoded, ImageReadMode.RGB)), int(entry["cls"])

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    images = webdataset.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(500).map(example)
    loader = webdataset.WebLoader(
        images.batched(task.batch_size),
        batch_size=None,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
        pin_memory=task.device == "cuda",
    ).with_epoch(task.count // task.batch_size)
    return plain.Normalised(loader, task)


def train(task: Task) -> list[float]:
    """Train in a plain loop."""
    return plain.train(task, batches(task))


def _write(folder: Path, task: Task) -> None:
    samples = ImageFolder(Path(task.images) / "train").samples
    aside = folder.with_name(f".{folder.name}")
    aside.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(aside / f"{shard}.tar")) as tar:
            for i, (path, label) in enumerate(samples[shard::SHARDS]):
                tar.write({"__key__": f"{shard}-{i}", "jpg": Path(path).read_bytes(), "cls": str(label)})
    aside.rename(folder)
