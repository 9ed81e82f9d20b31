"""fastai, as its tutorial of vision uses it: ImageDataLoaders, a Learner, its own SGD."""

import time
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.vision.augment import FlipItem, RandomResizedCrop
from fastai.vision.core import Normalize
from fastai.vision.data import ImageDataLoaders
from PIL.Image import Resampling

from benchmarks.contestants import plain
from benchmarks.task import HFLIP, LR, MOMENTUM, RATIO, SCALE, WEIGHT_DECAY, Task


class Clock(Callback):  # type: ignore[misc]
    """Notes images/s of every epoch's training."""

    def __init__(self, task: Task) -> None:
        """Have no figures yet."""
        self.task = task
        self.rates: list[float] = []

    def before_train(self) -> None:
        """Start."""
        self.began = time.perf_counter()

    def after_train(self) -> None:
        """Note."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        self.rates.append(self.task.count / (time.perf_counter() - self.began))


def batches(task: Task) -> Any:
    """Return fastai's training loader."""
    return _loaders(task).train


def train(task: Task) -> list[float]:
    """Train with a Learner."""
    clock = Clock(task)
    callbacks = [clock, MixedPrecision(amp_mode="bf16")] if task.precision == "bf16-mixed" else [clock]
    loss = torch.nn.CrossEntropyLoss()
    descent = partial(SGD, mom=MOMENTUM, decouple_wd=False)
    Learner(_loaders(task), plain.build(task), loss, descent, wd=WEIGHT_DECAY, cbs=callbacks).fit(task.epochs, LR)
    return clock.rates


def _loaders(task: Task) -> Any:
    resampling = Resampling[task.interpolation.upper()], Resampling.NEAREST
    crop = RandomResizedCrop(task.size, min_scale=SCALE[0], ratio=RATIO, resamples=resampling)
    return ImageDataLoaders.from_folder(
        task.images,
        train="train",
        valid="val",
        item_tfms=[crop, FlipItem(HFLIP)],
        batch_tfms=[Normalize.from_stats(task.mean, task.std)],
        bs=task.batch_size,
        num_workers=task.workers,
        device=torch.device(task.device),
    )
