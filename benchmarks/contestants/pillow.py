"""The serial loop that packs pictures by Pillow: open, convert, resize, write."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.task import Task


def prepare(task: Task) -> list[float]:
    """Pack every picture of the task; give images/s."""
    paths = sorted(Path(task.pictures).glob("*/*/*.jpg"))
    packed = Path(task.work) / "pillow.bin"
    began = time.perf_counter()
    with packed.open("wb") as file:
        for path in paths:
            file.write(stored(path, task).data)
    seconds = time.perf_counter() - began
    packed.unlink()
    return [len(paths) / seconds]


def stored(path: Path, task: Task) -> NDArray[np.uint8]:
    """Give the pixels that are stored of a file, uint8 (height, width, 3); training pictures are larger."""
    side = task.train_side if path.parts[-3] == "train" else task.evaluation_side
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    short, long = min(picture.size), max(picture.size)
    if short > side or path.parts[-3] != "train":
        longer = int(side * long / short)  # torchvision's rounding
        size = (side, longer) if picture.width == short else (longer, side)
        picture = picture.resize(size, Image.Resampling[task.interpolation.upper()])
    return np.asarray(picture)
