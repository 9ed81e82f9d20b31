"""What contestants share: the model, the optimiser, a plain training loop and the clock."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.task import CLASSES, HFLIP, LR, MOMENTUM, RATIO, SCALE, WEIGHT_DECAY, Task

Batches = Iterable[tuple[Tensor, Tensor]]


def build(task: Task) -> nn.Module:
    """Make the model on the device, channels_last if tuned."""
    torch.backends.cudnn.benchmark = True  # as timm's train.py has it
    torch.manual_seed(0)
    layout = torch.channels_last if task.tuned else torch.contiguous_format
    model: nn.Module = timm.create_model(task.model, num_classes=CLASSES)
    return model.to(task.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def optimizer(task: Task, model: nn.Module) -> torch.optim.Optimizer:
    """Make timm's SGD: Nesterov momentum, biases and norms undecayed, torch's fused one if tuned."""
    fused = task.tuned or None
    made: torch.optim.Optimizer = create_optimizer_v2(model, "sgd", LR, WEIGHT_DECAY, MOMENTUM, fused=fused)
    return made


def autocast(task: Task) -> torch.autocast:
    """Return the precision's context."""
    return torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16-mixed")


def train(task: Task, batches: Batches) -> list[float]:
    """Train with nothing around the step; give images/s of each epoch."""
    model = build(task).train()
    steps = optimizer(task, model)

    def epoch() -> None:
        for inputs, labels in batches:
            with autocast(task):
                loss = F.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            steps.zero_grad()

    return timed(task, epoch)


def timed(task: Task, epoch: Callable[[], None]) -> list[float]:
    """Run epochs; give images/s of each."""
    rates = []
    for _ in range(task.epochs):
        began = time.perf_counter()
        epoch()
        if task.device == "cuda":
            torch.cuda.synchronize()
        rates.append(task.count / (time.perf_counter() - began))
    return rates


def one_pass(batches: Iterable[Tensor]) -> list[float]:
    """Compute the mean and deviation of each band of images (n, bands, height, width); return images/s."""
    began, images, pixels = time.perf_counter(), 0, 0
    sums, squares = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        values = batch.transpose(0, 1).flatten(1).double()
        sums, squares = sums + values.sum(dim=1), squares + values.square().sum(dim=1)
        images, pixels = images + len(batch), pixels + values.shape[1]
    assert torch.isfinite((squares / pixels - (sums / pixels) ** 2).sqrt()).all()
    return [images / (time.perf_counter() - began)]


def crop_and_flip(task: Task) -> v2.Compose:
    """Return the augmentation of one decoded image, uint8 (3, height, width), by torchvision's tensor kernels."""
    interpolation = v2.InterpolationMode(task.interpolation)
    crop = v2.RandomResizedCrop(task.size, SCALE, RATIO, interpolation=interpolation, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(HFLIP)])


@dataclass(frozen=True)
class Normalised:
    """Batches of uint8 images (n, 3, height, width), made float32, normalised, channels_last, on the device."""

    batches: Batches
    task: Task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        task = self.task
        mean, std = (255 * torch.tensor(values, device=task.device) for values in (task.mean, task.std))
        # Whole rows at a time: on a CPU faster than by three numbers.
        factor, summand = (each.repeat(task.size) for each in (1 / std, -mean / std))
        for pixels, labels in self.batches:
            moved = pixels.to(task.device, non_blocking=True).permute(0, 2, 3, 1).contiguous()
            rows = moved.flatten(2).float().mul_(factor).add_(summand)
            yield rows.view(moved.shape).permute(0, 3, 1, 2), labels.to(task.device, non_blocking=True)
