"""The inference loop that features, evaluate and export share.

Batches are full and of one size, the last one padded: with most libraries an image's last bits depend on the size of
the batch that it is in, and here equal images give equal bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.config.schema import RunConfig
from headstart.core.progress import Progress
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels, loader_arguments
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.process_group import ProcessGroup


class _Inputs(Dataset[Tensor]):
    """Evaluation's pixels of a batch of rows."""

    def __init__(self, prepared: PreparedDataset) -> None:
        self._prepared = prepared

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        return evaluation_pixels(self._prepared, rows)


@torch.inference_mode()
def run_inference(
    function: Callable[[Tensor], Tensor],
    prepared: PreparedDataset,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    run: RunConfig,
    process_group: ProcessGroup,
    label: str,
) -> Iterator[NDArray[np.float32]]:
    """Apply a function to images, batch after batch, showing progress; all ranks take their share, and get all.

    Args:
        function: from float32 (batch_size, 3, height, width), normalised, in channels_last, on the ranks' device, to
            (batch_size, width).
        prepared: the packed images.
        rows: which of them, in which order; the same on every rank.
        batch_size: images a call; the last call is padded with the last image.
        run: the section of params.
        process_group: who works; batches go round among them.
        label: what is being done, for the progress.

    Yields:
        float32 (n, width): the outputs of the next ``n <= batch_size`` rows.
    """
    normalize = Normalize(prepared.input).to(process_group.device)
    padded = np.pad(rows, (0, -len(rows) % batch_size), mode="edge") if len(rows) else rows
    batches: Any = list(padded.reshape(-1, batch_size))
    # In the last round some ranks repeat the last batch.
    mine = [batches[min(i + process_group.rank, len(batches) - 1)] for i in range(0, len(batches), process_group.world)]
    loader = DataLoader(_Inputs(prepared), sampler=mine, **loader_arguments(run, process_group))
    left = len(rows)
    with (
        Progress(label, len(rows)) as progress,
        watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog,
    ):
        for turn, pixels in enumerate(loader):
            watchdog.beat(f"{label}, batch {turn + 1}")
            outputs = function(normalize(pixels.to(process_group.device, non_blocking=True)))
            for everyones in process_group.gather(outputs.float().cpu()):
                if left:
                    count = min(batch_size, left)
                    left -= count
                    yield everyones[:count].numpy()
                    progress.advance(count)
