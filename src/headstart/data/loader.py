"""From stored pixels to a model's input: evaluation's resize and crop, normalization, and DataLoader settings."""

import ctypes
import logging
import math
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import get_worker_info
from torchvision.transforms import Compose

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data.parallel import has_semaphores
from headstart.data.transforms import evaluation_transform
from headstart.distributed.process_group import ProcessGroup, cores_of_process
from headstart.distributed.signals import SIGNALS
from headstart.images.bands import Bands
from headstart.images.preprocess import Preprocessing

logger = logging.getLogger(__name__)

WORKERS_PER_GPU = 8
MIN_CORES_FOR_WORKER = 4
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (POSIX shared memory on Linux, through which loading processes pass batches)
AHEAD = 2
"""Batches that each loading process works ahead."""
IN_USE = 3
"""Batches in shared memory beside them: Lightning asks for the next one while one is in use, and one is on its way."""


class Normalize(nn.Module):
    """Turn pixels (n, height, width, bands) into a model's input, float32 (n, bands, height, width), channels_last.

    They are uint8 RGB, or with bands float32 in the units of the stored pixels.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Read ``mean`` and ``std``, for pixels in [0, 1], and ``bands`` from ``PreparedDataset.input``."""
        super().__init__()
        # Not buffers: weight averaging would average, and so round, them too.
        self.mean, self.std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        constants = Bands.of(config["bands"]).constants() if "bands" in config else ()
        self._bands = tuple(torch.from_numpy(each) for each in constants)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":  # noqa: FBT001, FBT002
        """Move to the module's device and dtype, as buffers would."""
        self.mean, self.std = fn(self.mean), fn(self.std)
        self._bands = tuple(fn(each) for each in self._bands)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize whole rows of pixels at once: on a CPU five times as fast as three channels at a time."""
        rows, width = pixels.flatten(2), pixels.shape[2]
        if self._bands:
            low, high, factor, summand = (each.repeat(width) for each in self._bands)
            rows = rows.to(factor.dtype).clamp(low, high).sub_(low)
        else:
            factor, summand = (each.repeat(width) for each in (1 / (255 * self.std), -self.mean / self.std))
            rows = rows.to(factor.dtype)
        return rows.mul_(factor).add_(summand).view(pixels.shape).permute(0, 3, 1, 2)


def blank_pixels(count: int, config: dict[str, Any]) -> Tensor:
    """Return a batch of zeros as ``Normalize`` takes them: (n, height, width, bands), uint8 RGB or float32."""
    channels, height, width = config["input_size"]
    return torch.zeros(count, height, width, channels, dtype=torch.float32 if "bands" in config else torch.uint8)


def evaluation_pixels(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Tensor:
    """Read images after evaluation's resize and crop: uint8 (n, height, width, 3), of bands float32 (n, ..., bands).

    Training images are stored larger and are resized here, RGB by torch's kernel: at most one level of 255 away from
    Pillow's, and eight times as fast. Then all are cropped as timm does.
    """
    if prepared.bands is not None:
        return _evaluation_bands(prepared, rows)
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


def _evaluation_bands(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Tensor:
    preprocessing = Preprocessing.of(prepared.input)
    channels, height, width = prepared.input["input_size"]
    pixels = torch.empty(len(rows), height, width, channels)
    for target, row in zip(pixels.numpy(), rows, strict=True):
        stored = prepared.pixels(int(row))
        if prepared.splits[row] == SPLITS.index("train"):
            stored = preprocessing.resized(stored)
        np.copyto(target, preprocessing.crop(stored))
    return pixels


def _resized(image: NDArray[np.uint8], resize: Compose, interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 (height, width, 3); Pillow resizes where torch has no kernel for the interpolation."""
    if interpolation not in ("bilinear", "bicubic"):
        return np.asarray(resize(Image.fromarray(image)))
    # With a batch dimension: without it torch chooses its slower kernel for planar images.
    resized: Tensor = resize(torch.tensor(image[None]).permute(0, 3, 1, 2))
    return resized[0].permute(1, 2, 0).numpy()


def loader_arguments(run: RunConfig, process_group: ProcessGroup, batch_bytes: int) -> dict[str, Any]:
    """Return the DataLoader arguments for a data set whose items are whole batches, of so many bytes.

    ``run.workers: auto`` means up to eight per GPU; on a CPU, where a loading process takes a core from the training
    step, one if there are at least four cores, else none. Fewer where the batches would not fit into shared memory.
    """
    on_gpu, cores = process_group.device.type == "cuda", cores_of_process(process_group.local_world)
    workers = min(WORKERS_PER_GPU, cores) if on_gpu else int(cores >= MIN_CORES_FOR_WORKER)
    if run.workers != "auto":
        workers = run.workers
    if workers and not has_semaphores():
        workers = 0
    room = free_shared_memory() / process_group.local_world
    if workers and (IN_USE + AHEAD * workers) * batch_bytes > room:
        fewer = max(0, int((room / batch_bytes - IN_USE) / AHEAD))
        logger.warning(
            "run.workers: %d instead of %d, since %s has %.0f MB for batches of %.1f MB (Docker: --shm-size)",
            *(fewer, workers, SHARED_MEMORY, room / 1e6, batch_bytes / 1e6),
        )
        workers = fewer
    return {
        "batch_size": None,
        "num_workers": workers,
        "pin_memory": on_gpu,
        "worker_init_fn": _start_worker,
        # Before the watchdog's, which can't see that a loading process is to blame.
        "timeout": 48 * run.timeout_minutes if workers else 0,
    }


def free_shared_memory() -> float:
    """Return the bytes that are free in shared memory: 0 without it, infinite where it has no limit of its own."""
    if sys.platform != "linux":
        return math.inf
    try:
        total, _, free = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return 0
    return free if total else math.inf


def in_shared_memory(batch: Any) -> Any:
    """Move the tensors of a loading process's batch, one or a tuple, to shared memory; in the main process do nothing.

    torch would do it in a thread, in which a failure loses the batch, and the main process waits for it for ever.

    Raises:
        UserError: shared memory is full.
    """
    if get_worker_info() is not None:
        try:
            for tensor in batch if isinstance(batch, tuple) else (batch,):
                if tensor is not None:
                    tensor.share_memory_()
        except RuntimeError as error:
            what = "free some, make it larger (Docker: --shm-size), or set run.workers to fewer or 0"
            raise UserError(
                f"{SHARED_MEMORY} is full, and loading processes pass batches through it: {what}"
            ) from error
    return batch


def _start_worker(_: int) -> None:
    """Survive signals that are sent to the whole job, since loading goes on until the state is saved; die with it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
