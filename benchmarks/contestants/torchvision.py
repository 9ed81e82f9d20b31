"""torchvision's ImageFolder and transforms in torch's DataLoader, feeding a plain loop.

By default Pillow decodes and torchvision's first transforms follow, as in its reference of classification; tuned, it
decodes to tensors, v2's kernels work on uint8, and whole batches are normalised.
"""

from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from benchmarks.contestants import plain
from benchmarks.task import HFLIP, RATIO, SCALE, Task


def batches(task: Task) -> plain.Batches:
    """Return a training loader."""
    root = Path(task.images) / "train"
    if task.tuned:
        decode = partial(decode_image, mode=ImageReadMode.RGB)
        return plain.Normalised(_loader(ImageFolder(root, plain.crop_and_flip(task), loader=decode), task), task)
    interpolation = transforms.InterpolationMode(task.interpolation)
    steps = [
        transforms.RandomResizedCrop(task.size, SCALE, RATIO, interpolation=interpolation),
        transforms.RandomHorizontalFlip(HFLIP),
        transforms.ToTensor(),
        transforms.Normalize(task.mean, task.std),
    ]
    return _loader(ImageFolder(root, transforms.Compose(steps)), task)


def train(task: Task) -> list[float]:
    """Train in a plain loop."""
    return plain.train(task, batches(task))


def _loader(images: ImageFolder, task: Task) -> plain.Batches:
    return DataLoader(
        images,
        task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=task.workers,
        persistent_workers=task.tuned and task.workers > 0,
        pin_memory=task.device == "cuda",
    )
