"""The inference loop that features, evaluate and export share.

Batches are full and of one size, the last one padded: with most libraries a picture's last bits depend on the size of
the batch that it is in, and here equal pictures give equal bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose

from headstart.ground.artifacts import SPLITS, Prepared
from headstart.ground.errors import UserError
from headstart.ground.params import Run
from headstart.libraries.backbone import evaluation_transform
from headstart.libraries.progress import Progress

WORKERS_A_GPU = 8
CORES_FOR_A_WORKER = 4


def device_of(run: Run) -> torch.device:
    """Choose the device of a stage that uses one; raises UserError where ``run.accelerator`` isn't there."""
    found = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if run.accelerator == "auto":
        chosen = next(name for name, there in found.items() if there)
    elif found[run.accelerator]:
        chosen = run.accelerator
    else:
        raise UserError(f"run.accelerator: no {run.accelerator} on this machine; use auto or cpu")
    return torch.device("cuda" if chosen == "gpu" else chosen)


def use_allowed_cores() -> None:
    """Take no more threads than this process may use: of a container's quota of CPU time torch knows nothing."""
    torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))


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


def evaluation_pixels(prepared: Prepared, rows: NDArray[np.int64]) -> Tensor:
    """Read pictures as evaluation sees them: uint8 (n, height, width, 3).

    Training pictures are stored larger: timm's own resize is done here, by torch's kernel, which is at most one level
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


def _resized(picture: NDArray[np.uint8], resize: Compose, interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 (height, width, 3); what torch has no kernel for is done by Pillow."""
    if interpolation not in ("bilinear", "bicubic"):
        return np.asarray(resize(Image.fromarray(picture)))
    # With the batch's dimension first: without it torch takes its slower kernel for planar pictures.
    resized: Tensor = resize(torch.tensor(picture[None]).permute(0, 3, 1, 2))
    return resized[0].permute(1, 2, 0).numpy()


class _Inputs(Dataset[Tensor]):
    """Evaluation's pixels of a batch of rows."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        return evaluation_pixels(self._prepared, rows)


def loading(device: torch.device, run: Run, *, processes: int = 1) -> dict[str, Any]:
    """Give a DataLoader's arguments for batches that are made whole, one at a time.

    Args:
        device: what computes.
        run: ``workers`` is used; ``auto`` is up to eight a GPU, and on a CPU, where a loading process takes a core from
            the step, one if there are four cores or more.
        processes: on this machine that load each their own.
    """
    on_gpu, workers = device.type == "cuda", run.workers
    if workers == "auto":
        cores = max(1, joblib.cpu_count() // processes)
        workers = min(WORKERS_A_GPU, cores) if on_gpu else int(cores >= CORES_FOR_A_WORKER)
    return {"batch_size": None, "num_workers": workers, "pin_memory": on_gpu}


@torch.inference_mode()
def infer(
    function: Callable[[Tensor], Tensor],
    prepared: Prepared,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
    run: Run,
    label: str,
) -> Iterator[NDArray[np.float32]]:
    """Apply a function to pictures, batch after batch, showing progress.

    Args:
        function: from float32 (batch_size, 3, height, width), normalised, in channels_last, on the device, to
            (batch_size, width).
        prepared: the packed pictures.
        rows: which of them, in which order.
        batch_size: pictures a call; the last call is padded with the last picture.
        device: where the function's parameters are.
        run: the section of params.
        label: what is being done, for the progress.

    Yields:
        float32 (n, width): the outputs of the next ``n <= batch_size`` rows.
    """
    use_allowed_cores()
    normalize = Normalize(prepared.input).to(device)
    padded = np.pad(rows, (0, -len(rows) % batch_size), mode="edge") if len(rows) else rows
    batches: Any = list(padded.reshape(-1, batch_size))
    loader = DataLoader(_Inputs(prepared), sampler=batches, **loading(device, run))
    with Progress(label, len(rows)) as progress:
        for start, pixels in zip(range(0, len(rows), batch_size), loader, strict=True):
            outputs = function(normalize(pixels.to(device, non_blocking=True)))
            count = min(batch_size, len(rows) - start)
            yield outputs[:count].float().cpu().numpy()
            progress.advance(count)
