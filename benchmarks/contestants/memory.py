"""The limit: the bare step on one batch that is in memory already, as the model reads it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contestants import plain
from benchmarks.task import CLASSES, Task


@dataclass(frozen=True)
class OneBatch:
    """The same batch again and again."""

    task: Task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        task = self.task
        inputs = torch.randn(task.batch_size, 3, task.size, task.size, device=task.device)
        labels = torch.randint(CLASSES, (task.batch_size,), device=task.device)
        batch = inputs.contiguous(memory_format=torch.channels_last), labels
        for _ in range(task.count // task.batch_size):
            yield batch


def train(task: Task) -> list[float]:
    """Train on it."""
    return plain.train(task, OneBatch(task))


@torch.inference_mode()
def infer(task: Task) -> list[float]:
    """Compute features of it."""
    model = plain.build(task).eval()

    def epoch() -> None:
        for inputs, _ in OneBatch(task):
            model.forward_head(model.forward_features(inputs), pre_logits=True)  # type: ignore[operator]

    return plain.timed(task, epoch)
