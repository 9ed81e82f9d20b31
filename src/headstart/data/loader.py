"""The inference loop that features, evaluate and export share.

Batches are full and of one size, the last one padded: with most libraries an image's last bits depend on the size of
the batch that it is in, and here equal images give equal bytes.
"""

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

WORKERS_A_GPU = 8
CORES_FOR_A_WORKER = 4


class Normalize(nn.Module):
    """Uint8 pixels (n, height, width, 3) to the float32 (n, 3, height, width), channels_last, that a backbone reads."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Keep timm's mean and standard deviation, given for pixels in [0, 1]."""
        super().__init__()
        # No buffers: an average of a model's weights averages its buffers too, and rounds them.
        self.mean, self.std = torch.tensor(config["mean"]), torch.tensor(config["std"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":  # noqa: FBT001, FBT002
        """Go where the module goes, as buffers would."""
        self.mean, self.std = fn(self.mean), fn(self.std)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise whole rows of pixels: on a CPU five times as fast as three numbers at a time."""
        factor, summand = (each.repeat(pixels.shape[2]) for each in (1 / (255 * self.std), -self.mean / self.std))
        rows = pixels.flatten(2).to(factor.dtype).mul_(factor).add_(summand)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


def evaluation_pixels(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Tensor:
    """Read images as evaluation sees them: uint8 (n, height, width, 3).

    Training images are stored larger: timm's own resize is done here, by torch's kernel, which is at most one level
    of 255 away from Pillow's and eight times as fast. For all then timm's own crop.
    """
    resize, crop = evaluation_transform(prepared.input)
    _, height, width = prepared.input["input_size"]
    pixels = torch.empty(len(rows), height, width, 3, dtype=torch.uint8)
    for place, row in zip(pixels, rows, strict=True):
        stored = prepared.pixels(int(row))
        if prepared.splits[row] == SPLITS.index("train"):
            stored = _resized(stored, resize, prepared.input["interpolation"])
        if stored.shape[:2] == (height, width):
            np.copyto(place.numpy(), stored)
        else:
            place.copy_(crop(torch.tensor(stored).permute(2, 0, 1)).permute(1, 2, 0))
    return pixels


def _resized(image: NDArray[np.uint8], resize: Compose, interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 (height, width, 3); what torch has no kernel for is done by Pillow."""
    if interpolation not in ("bilinear", "bicubic"):
        return np.asarray(resize(Image.fromarray(image)))
    # With the batch's dimension first: without it torch takes its slower kernel for planar images.
    resized: Tensor = resize(torch.tensor(image[None]).permute(0, 3, 1, 2))
    return resized[0].permute(1, 2, 0).numpy()


def loader_arguments(run: RunConfig, process_group: ProcessGroup) -> dict[str, Any]:
    """Return a DataLoader's arguments for batches that are made whole, one at a time.

    Args:
        run: ``workers`` is used; ``auto`` is up to eight a GPU, and on a CPU, where a loading process takes a core from
            the step, one if there are four cores or more.
        process_group: what computes, and how many processes of this machine load each their own.
    """
    on_gpu, workers = process_group.device.type == "cuda", run.workers
    if workers == "auto":
        cores = cores_of_process(process_group.local_world)
        workers = min(WORKERS_A_GPU, cores) if on_gpu else int(cores >= CORES_FOR_A_WORKER)
    return {"batch_size": None, "num_workers": workers, "pin_memory": on_gpu, "worker_init_fn": _leave_signals}


def _leave_signals(_: int) -> None:
    """Have a loading process live through signals that come to a whole job: it is needed until the state is saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
