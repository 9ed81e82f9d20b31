"""timm as its train.py uses it: its data set, loader, optimiser, schedule and order of operations.

timm's package has no train.py, so ``train`` has the lines of its ``main`` and ``train_one_epoch`` that its default
settings run (timm 1.0), without label smoothing, colour jitter and the random choice of an interpolation.
"""

import logging
import time
from typing import Any

import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.metrics import AverageMeter
from torch import nn

from benchmarks.contestants import plain
from benchmarks.task import HFLIP, RATIO, SCALE, Task

LOG_INTERVAL = 50  # train.py's default
logger = logging.getLogger("train")


def batches(task: Task) -> Any:
    """Return timm's training loader."""
    return create_loader(
        create_dataset("", f"{task.images}/train", split="train", is_training=True, batch_size=task.batch_size),
        input_size=(3, task.size, task.size),
        batch_size=task.batch_size,
        is_training=True,
        scale=SCALE,
        ratio=RATIO,
        hflip=HFLIP,
        color_jitter=0.0,
        interpolation=task.interpolation,
        mean=tuple(task.mean),
        std=tuple(task.std),
        num_workers=task.workers,
        device=torch.device(task.device),
    )


def train(task: Task) -> list[float]:
    """Train as train.py does."""
    model, loader = plain.build(task), batches(task)
    optimizer = plain.optimizer(task, model)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=task.epochs, updates_per_epoch=len(loader))
    loss_fn = nn.CrossEntropyLoss()
    updates = 0

    def epoch() -> None:
        nonlocal updates
        losses, update_time = AverageMeter(), AverageMeter()  # type: ignore[no-untyped-call]
        began = time.time()
        model.train()
        for i, (inputs, target) in enumerate(loader):
            if task.tuned:
                inputs = inputs.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901  (train.py's lines)
            with plain.autocast(task):
                loss = loss_fn(model(inputs), target)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), inputs.size(0))  # type: ignore[no-untyped-call]
            updates += 1
            optimizer.zero_grad()
            update_time.update(time.time() - began)  # type: ignore[no-untyped-call]
            began = time.time()
            if i % LOG_INTERVAL == 0:
                logger.info("Train: %d Loss: %s Time: %s", i, losses.avg, update_time.avg)
            scheduler.step_update(num_updates=updates, metric=losses.avg)

    return plain.timed(task, epoch)


@torch.inference_mode()
def infer(task: Task) -> list[float]:
    """Compute features in the order of operations of timm's validate.py."""
    model = plain.build(task).eval()
    loader = create_loader(
        create_dataset("", f"{task.images}/train", split="train"),
        input_size=(3, task.size, task.size),
        batch_size=task.batch_size,
        interpolation=task.interpolation,
        mean=tuple(task.mean),
        std=tuple(task.std),
        num_workers=task.workers,
        crop_pct=task.crop_pct,
        device=torch.device(task.device),
    )

    def epoch() -> None:
        for inputs, _ in loader:
            laid_out = inputs.contiguous(memory_format=torch.channels_last) if task.tuned else inputs
            maps = model.forward_features(laid_out)  # type: ignore[operator]
            model.forward_head(maps, pre_logits=True).cpu()  # type: ignore[operator]

    return plain.timed(task, epoch)
