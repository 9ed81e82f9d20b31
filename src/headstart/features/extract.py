"""The inference loop that features, evaluate and export share.

Batches are full and of one size, the last one padded: with most libraries a picture's last bits depend on the size of
the batch that it is in, and here equal pictures give equal bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.config.schema import Run
from headstart.core.progress import Progress
from headstart.data.dataset import Prepared
from headstart.data.loader import Normalize, evaluation_pixels, loading
from headstart.distributed.heartbeat import watched
from headstart.distributed.process_group import Ranks


class _Inputs(Dataset[Tensor]):
    """Evaluation's pixels of a batch of rows."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        return evaluation_pixels(self._prepared, rows)


@torch.inference_mode()
def infer(
    function: Callable[[Tensor], Tensor],
    prepared: Prepared,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    run: Run,
    ranks: Ranks,
    label: str,
) -> Iterator[NDArray[np.float32]]:
    """Apply a function to pictures, batch after batch, showing progress; all ranks take their share, and get all.

    Args:
        function: from float32 (batch_size, 3, height, width), normalised, in channels_last, on the ranks' device, to
            (batch_size, width).
        prepared: the packed pictures.
        rows: which of them, in which order; the same on every rank.
        batch_size: pictures a call; the last call is padded with the last picture.
        run: the section of params.
        ranks: who works; batches go round among them.
        label: what is being done, for the progress.

    Yields:
        float32 (n, width): the outputs of the next ``n <= batch_size`` rows.
    """
    normalize = Normalize(prepared.input).to(ranks.device)
    padded = np.pad(rows, (0, -len(rows) % batch_size), mode="edge") if len(rows) else rows
    batches: Any = list(padded.reshape(-1, batch_size))
    # In the last round some ranks repeat the last batch.
    mine = [batches[min(i + ranks.rank, len(batches) - 1)] for i in range(0, len(batches), ranks.world)]
    loader = DataLoader(_Inputs(prepared), sampler=mine, **loading(run, ranks))
    left = len(rows)
    with (
        Progress(label, len(rows)) as progress,
        watched(ranks.rank, ranks.world, run.timeout_minutes) as watchdog,
    ):
        for turn, pixels in enumerate(loader):
            watchdog.beat(f"{label}, batch {turn + 1}")
            outputs = function(normalize(pixels.to(ranks.device, non_blocking=True)))
            for everyones in ranks.gather(outputs.float().cpu()):
                if left:
                    count = min(batch_size, left)
                    left -= count
                    yield everyones[:count].numpy()
                    progress.advance(count)
