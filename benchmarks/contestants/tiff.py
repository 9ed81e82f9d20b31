"""TIFF as people read it by hand: tifffile in a Dataset, torchvision's transforms of each image, torch's DataLoader."""

from pathlib import Path

import tifffile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.contestants import plain
from benchmarks.task import HFLIP, RATIO, SCALE, Task


class Images(Dataset[tuple[Tensor, Tensor]]):
    """The TIFFs of a folder a class, float32 (bands, height, width), with the class's number."""

    def __init__(self, folder: Path, transform: v2.Transform | None = None) -> None:
        """List the files."""
        self._files = sorted(folder.glob("*/*.tif"))
        names = sorted({file.parent.name for file in self._files})
        self._labels = [names.index(file.parent.name) for file in self._files]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(tifffile.imread(self._files[index])).float()
        image = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return image if self._transform is None else self._transform(image), torch.tensor(self._labels[index])


def batches(task: Task) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the training loader."""
    crop = v2.RandomResizedCrop(task.size, SCALE, RATIO, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(HFLIP), v2.Normalize(task.mean, task.std)])
    images = Images(Path(task.images, "train"), transform)
    return DataLoader(images, task.batch_size, shuffle=True, drop_last=True, num_workers=task.workers)


def prepare(task: Task) -> list[float]:
    """Read every image once for the bands' means and deviations, which its user types; return images/s."""
    splits = (Images(each) for each in sorted(Path(task.images).iterdir()))
    return plain.one_pass(
        image for split in splits for image, _ in DataLoader(split, task.batch_size, num_workers=task.workers)
    )
