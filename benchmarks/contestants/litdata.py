"""LitData's optimised chunks of the JPEGs, decoded by torchvision, feeding a plain loop."""

import os
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from benchmarks.contestants import plain
from benchmarks.task import Task


class Images(StreamingDataset):  # type: ignore[misc]
    """Augments what LitData decodes."""

    def __init__(self, folder: Path, task: Task) -> None:
        """Open the chunks."""
        super().__init__(str(folder), shuffle=True, drop_last=True)
        self._augment = plain.crop_and_flip(task)

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        example = super().__getitem__(index)
        pixels: Tensor = example["image"]
        return self._augment(pixels.expand(3, -1, -1)), example["label"]


def batches(task: Task) -> plain.Batches:
    """Return LitData's loader; the chunks are written where there are none yet."""
    folder = Path(task.work) / f"litdata-{Path(task.images).name}"
    if not (folder / "index.json").exists():
        images = ImageFolder(Path(task.images) / "train").samples
        optimize(_example, images, str(folder), chunk_bytes="64MB", num_workers=os.cpu_count())
    loader = StreamingDataLoader(
        Images(folder, task),
        batch_size=task.batch_size,
        drop_last=True,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
        pin_memory=task.device == "cuda",
    )
    return plain.Normalised(loader, task)


def train(task: Task) -> list[float]:
    """Train in a plain loop."""
    return plain.train(task, batches(task))


def _example(sample: tuple[str, int]) -> dict[str, Any]:
    """Keep the file's bytes: LitData writes an opened JPEG as it is."""
    path, label = sample
    return {"image": Image.open(path), "label": torch.tensor(label)}
