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

from headstart.ground.artifacts import SPLITS, Prepared
from headstart.ground.errors import UserError
from headstart.ground.params import Run
from headstart.libraries.backbone import evaluation_transform
from headstart.libraries.progress import Progress


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

    Training pictures are stored larger: timm's own resize is done here, and for all timm's own crop.
    """
    resize, crop = evaluation_transform(prepared.input)
    train = SPLITS.index("train")
    _, height, width = prepared.input["input_size"]
    pixels = torch.empty(len(rows), height, width, 3, dtype=torch.uint8)
    for place, row in zip(pixels, rows, strict=True):
        picture = prepared.pixels(int(row))
        if prepared.splits[row] == train:
            picture = np.asarray(resize(Image.fromarray(picture)))
        if picture.shape[:2] == (height, width):
            np.copyto(place.numpy(), picture)
        else:
            place.copy_(crop(torch.tensor(picture).permute(2, 0, 1)).permute(1, 2, 0))
    return pixels


@torch.inference_mode()
def infer(
    function: Callable[[Tensor], Tensor],
    prepared: Prepared,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
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
        label: what is being done, for the progress.

    Yields:
        float32 (n, width): the outputs of the next ``n <= batch_size`` rows.
    """
    use_allowed_cores()
    normalize = Normalize(prepared.input).to(device)
    with Progress(label, len(rows)) as progress:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            padded = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
            outputs = function(normalize(evaluation_pixels(prepared, padded).to(device)))
            yield outputs[: len(chosen)].float().cpu().numpy()
            progress.advance(len(chosen))
