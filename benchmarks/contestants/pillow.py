"""The serial loop that packs images by Pillow: open, convert, resize, write."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.task import Task


def prepare(task: Task) -> list[float]:
    """Pack every image of the task; give images/s."""
    paths = sorted(Path(task.images).glob("*/*/*.jpg"))
    packed = Path(task.work) / "pillow.bin"
    began = time.perf_counter()
    with packed.open("wb") as file:
        for path in paths:
            file.write(stored(path, task).data)
    seconds = time.perf_counter() - began
    packed.unlink()
    return [len(paths) / seconds]


def stored(path: Path, task: Task) -> NDArray[np.uint8]:
    """Return the pixels that are stored of a file, uint8 (height, width, 3); training images are larger."""
    side = task.train_side if path.parts[-3] == "train" else task.evaluation_side
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    short, long = min(image.size), max(image.size)
    if short > side or path.parts[-3] != "train":
        longer = int(side * long / short)  # torchvision's rounding
        size = (side, longer) if image.width == short else (longer, side)
        image = image.resize(size, Image.Resampling[task.interpolation.upper()])
    return np.asarray(image)
