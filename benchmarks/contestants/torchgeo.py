"""torchgeo as its data modules use it: its data set and loader of one image a file, kornia's transforms of batches."""

from collections.abc import Iterator
from pathlib import Path

import kornia.augmentation as K  # noqa: N812  (kornia's own convention)
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import NonGeoClassificationDataset
from torchgeo.datasets.utils import rasterio_loader

from benchmarks.contestants import plain
from benchmarks.task import HFLIP, RATIO, SCALE, Task


class Batches:
    """Batches of the loader, normalised, cropped and flipped as torchgeo's data modules do after the transfer."""

    def __init__(self, task: Task) -> None:
        """Open the training images."""
        images = NonGeoClassificationDataset(f"{task.images}/train", loader=rasterio_loader)
        self._loader = DataLoader(images, task.batch_size, shuffle=True, drop_last=True, num_workers=task.workers)
        size = (task.size, task.size)
        self._augment = K.AugmentationSequential(
            K.Normalize(torch.tensor(task.mean), torch.tensor(task.std)),
            K.RandomResizedCrop(size, SCALE, RATIO),
            K.RandomHorizontalFlip(HFLIP),
            data_keys=None,
            keepdim=True,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader:
            yield self._augment({"image": batch["image"]})["image"], batch["label"]


def batches(task: Task) -> Batches:
    """Return the training batches."""
    return Batches(task)


def prepare(task: Task) -> list[float]:
    """Read every image once for the bands' means and deviations, which its user types; return images/s."""
    splits = (NonGeoClassificationDataset(str(each), loader=rasterio_loader) for each in Path(task.images).iterdir())
    return plain.one_pass(
        batch["image"] for split in splits for batch in DataLoader(split, task.batch_size, num_workers=task.workers)
    )
