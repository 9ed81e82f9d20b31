"""From stored pixels to a model's input: evaluation's resize and crop, normalization, and DataLoader settings."""

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose

from headstart.config.schema import RunConfig
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data.transforms import evaluation_transform
from headstart.distributed.process_group import ProcessGroup, cores_of_process
from headstart.distributed.signals import SIGNALS

WORKERS_PER_GPU = 8
MIN_CORES_FOR_WORKER = 4


class Normalize(nn.Module):
    """Turn uint8 pixels (n, height, width, 3) into a model's input, float32 (n, 3, height, width), channels_last."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Read ``mean`` and ``std``, for pixels in [0, 1], from timm's data config."""
        super().__init__()
        # Not buffers: weight averaging would average, and so round, them too.
        self.mean, self.std = torch.tensor(config["mean"]), torch.tensor(config["std"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":  # noqa: FBT001, FBT002
        """Move to the module's device and dtype, as buffers would."""
        self.mean, self.std = fn(self.mean), fn(self.std)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize whole rows of pixels at once: on a CPU five times as fast as three channels at a time."""
        factor, summand = (each.repeat(pixels.shape[2]) for each in (1 / (255 * self.std), -self.mean / self.std))
        rows = pixels.flatten(2).to(factor.dtype).mul_(factor).add_(summand)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


def evaluation_pixels(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Tensor:
    """Read images after evaluation's resize and crop: uint8 (n, height, width, 3).

    Training images are stored larger and are resized here, by torch's kernel: at most one level of 255 away from
    Pillow's, and eight times as fast. Then all are cropped as timm does.
    """
    resize, crop = evaluation_transform(prepared.input)
    _, height, width = prepared.input["input_size"]
    pixels = torch.empty(len(rows), height, width, 3, dtype=torch.uint8)
    for target, row in zip(pixels, rows, strict=True):
        stored = prepared.pixels(int(row))
        if prepared.splits[row] == SPLITS.index("train"):
            stored = _resized(stored, resize, prepared.input["interpolation"])
        if stored.shape[:2] == (height, width):
            np.copyto(target.numpy(), stored)
        else:
            target.copy_(crop(torch.tensor(stored).permute(2, 0, 1)).permute(1, 2, 0))
    return pixels


def _resized(image: NDArray[np.uint8], resize: Compose, interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 (height, width, 3); Pillow resizes where torch has no kernel for the interpolation."""
    if interpolation not in ("bilinear", "bicubic"):
        return np.asarray(resize(Image.fromarray(image)))
    # With a batch dimension: without it torch chooses its slower kernel for planar images.
    resized: Tensor = resize(torch.tensor(image[None]).permute(0, 3, 1, 2))
    return resized[0].permute(1, 2, 0).numpy()


def loader_arguments(run: RunConfig, process_group: ProcessGroup) -> dict[str, Any]:
    """Return the DataLoader arguments for a data set whose items are whole batches.

    ``run.workers: auto`` means up to eight per GPU; on a CPU, where a loading process takes a core from the training
    step, one if there are at least four cores, else none.
    """
    on_gpu, workers = process_group.device.type == "cuda", run.workers
    if workers == "auto":
        cores = cores_of_process(process_group.local_world)
        workers = min(WORKERS_PER_GPU, cores) if on_gpu else int(cores >= MIN_CORES_FOR_WORKER)
    return {"batch_size": None, "num_workers": workers, "pin_memory": on_gpu, "worker_init_fn": _ignore_signals}


def _ignore_signals(_: int) -> None:
    """Survive signals that are sent to the whole job: loading goes on until the training state is saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
