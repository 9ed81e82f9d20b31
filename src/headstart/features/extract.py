"""Inference over the prepared images on all ranks, which features, evaluate and export share; cached features.

All batches have one size, the last one is padded: with most libraries the last bits of an image's output depend on the
size of its batch, and here equal images must give equal bytes.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.config.schema import Params, RunConfig
from headstart.core.blocks import write_header
from headstart.core.errors import UserError
from headstart.core.io import atomic_write, write_json
from headstart.core.paths import FEATURE_ROWS, FEATURES, FEATURES_INFO
from headstart.core.progress import Progress
from headstart.core.storage import storage_errors
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, blank_pixels, evaluation_pixels, in_shared_memory, loader_arguments
from headstart.distributed.claims import claim_tasks
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.memory import images_that_fit, live_bytes
from headstart.distributed.process_group import ProcessGroup
from headstart.features.cache import FeatureCache, ImageKeys

logger = logging.getLogger(__name__)

ROWS = 1024
"""Of a file of the cache, about: what a killed process loses. As many are in memory when data/features is written."""
TASKS = 8
"""For each rank, at least, of few images: the last one that is done waits for no more than such a part of the work."""
SLACK = 2.0
"""Memory that a CPU's forward pass takes, over the tensors that live at once. Measured, see docs/performance.md."""


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
    """Apply a function to images, batch by batch. The ranks share the work, and rank 0 yields all outputs.

    Args:
        function: from float32 (batch_size, 3, height, width), normalized, channels_last, on the rank's device, to
            (batch_size, width).
        prepared: the packed images.
        rows: which of them, in which order; the same on every rank.
        batch_size: images per call, fewer where a CPU's memory is too small; the last call is padded.
        run: ``workers`` and ``timeout_minutes`` are used.
        process_group: batch i is computed by rank i modulo their number.
        label: for the progress bar.

    Yields:
        float32 (n, width): the outputs of the next ``n <= batch_size`` rows; nothing on the other ranks.
    """
    batch_size = _fitting(batch_size, function, prepared, process_group, label)
    padded = np.pad(rows, (0, -len(rows) % batch_size), mode="edge") if len(rows) else rows
    batches = padded.reshape(-1, batch_size)
    # In the last round some ranks repeat the last batch.
    numbers = np.arange(0, len(batches), process_group.world) + process_group.rank
    mine = batches[np.minimum(numbers, len(batches) - 1)]
    left = len(rows)
    with Progress(label, len(rows)) as progress:
        for outputs in _outputs(
            function, prepared, mine, batch_size, run=run, process_group=process_group, label=label
        ):
            for of_rank in process_group.gather_on_rank_zero(outputs):
                if left:
                    count = min(batch_size, left)
                    left -= count
                    yield of_rank[:count].numpy()
                    progress.advance(count)


def _outputs(
    function: Callable[[Tensor], Tensor],
    prepared: PreparedDataset,
    batches: Iterable[NDArray[np.int64]],
    batch_size: int,
    *,
    run: RunConfig,
    process_group: ProcessGroup,
    label: str,
) -> Iterator[Tensor]:
    """Yield this rank's outputs, float32 (batch_size, width) on the CPU, for each batch of rows (batch_size,)."""
    normalize = Normalize(prepared.input).to(process_group.device)
    arguments = loader_arguments(run, process_group, batch_size * blank_pixels(1, prepared.input).nbytes)
    loader = DataLoader(_Pixels(prepared), sampler=batches, collate_fn=in_shared_memory, **arguments)
    with watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog:
        for number, pixels in enumerate(loader, start=1):
            watchdog.beat(f"{label}, batch {number}")
            yield function(normalize(pixels.to(process_group.device, non_blocking=True))).float().cpu()


class _Pixels(Dataset[Tensor]):
    """The prepared images as evaluation sees them, many at a time."""

    def __init__(self, prepared: PreparedDataset) -> None:
        self._prepared = prepared

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        return evaluation_pixels(self._prepared, rows)


def _fitting(
    batch_size: int,
    function: Callable[[Tensor], Tensor],
    prepared: PreparedDataset,
    process_group: ProcessGroup,
    label: str,
) -> int:
    """Return how many images fit into every rank's memory at once, at most ``batch_size``; see ``training.batch_size``.

    Raises:
        UserError: not one does.
    """
    if process_group.device.type != "cpu":
        return batch_size
    pixels = blank_pixels(1, prepared.input)
    normalize = Normalize(prepared.input)
    per_image = SLACK * live_bytes(lambda: function(normalize(pixels)))
    images, free = images_that_fit(per_image, 0, process_group.local_world)
    fewest = min(int(each) for each in process_group.gather(torch.tensor(images)))
    if fewest >= batch_size:
        return batch_size
    section = label.partition(",")[0]
    what = f"{section}.batch_size: {batch_size} images take about {batch_size * per_image / 1e9:.3g} GB of memory, and "
    what += f"{free / 1e9:.3g} GB are free (limits of a container, a job or ulimit count)"
    if not fewest:
        raise UserError(f"{what}, too little for one: free some, or choose a smaller backbone.image_size or backbone")
    logger.warning("%s: computed %d at a time", what, fewest)
    return fewest


@torch.inference_mode()
def compute_missing_features(
    function: Callable[[Tensor], Tensor],
    prepared: PreparedDataset,
    keys: ImageKeys,
    cache: FeatureCache,
    rows: NDArray[np.int64] | None = None,
    *,
    params: Params,
    process_group: ProcessGroup,
) -> tuple[int, float | None]:
    """Compute the features that the cache lacks, equal images once, and add them to it some thousand at a time.

    The ranks share the work, and those that are faster do more of it. ``function`` is as in ``run_inference``; ``keys``
    are those of the ``rows``, None for all. Returns the number of features computed, and how many a second, None if
    there were none. Raises UserError if a feature is not finite.
    """
    missing = process_group.broadcast_from_rank_zero(lambda: cache.missing(keys))
    if not len(missing):
        return 0, None
    batch_size = _fitting(params.features.batch_size, function, prepared, process_group, "features")
    batches_of_rank = -(-len(missing) // (batch_size * process_group.world))
    size = batch_size * max(1, min(ROWS // batch_size, batches_of_rank // TASKS))
    tasks = np.split(missing, range(size, len(missing), size))
    begun: deque[NDArray[np.int64]] = deque()

    def batches() -> Iterator[NDArray[np.int64]]:
        for task in claim_tasks(len(tasks), process_group):
            places = tasks[task]
            begun.append(places)
            of_task = places if rows is None else rows[places]
            yield from np.pad(of_task, (0, -len(places) % batch_size), mode="edge").reshape(-1, batch_size)

    def compute() -> None:
        options: Any = {"run": params.run, "process_group": process_group, "label": "features"}
        computed: list[NDArray[np.float32]] = []
        with Progress("features", len(missing) // process_group.world, shown=process_group.rank == 0) as progress:
            for outputs in _outputs(function, prepared, batches(), batch_size, **options):
                computed.append(outputs.numpy())
                if len(computed) * batch_size >= len(begun[0]):
                    places = begun.popleft()
                    features = np.concatenate(computed)[: len(places)]
                    computed.clear()
                    if not np.isfinite(features).all():
                        message = "this backbone gives features that are not finite; its weights are damaged"
                        raise UserError(f"backbone.name: {message}")
                    cache.add(keys[places], features)
                    progress.advance(len(places))

    began = time.perf_counter()
    process_group.run_on_all(compute)
    cache.refresh()
    return len(missing), round(len(missing) / (time.perf_counter() - began), 1)


def write_features(
    read: Callable[[slice], NDArray[Any]],
    shape: tuple[int, int],
    dtype: str,
    info: dict[str, Any],
    process_group: ProcessGroup | None = None,
) -> None:
    """Write data/features in the manifest's order, each rank its part of the rows.

    Args:
        read: returns the rows (n, width) of a slice; it is called for some thousand rows at a time.
        shape: the number of images, and of values in a row.
        dtype: of the file.
        info: what the features were computed from.
        process_group: the ranks; None: this process alone.
    """
    group = process_group or ProcessGroup()
    path = FEATURES.with_name(f".{FEATURES.name}.partial") / FEATURE_ROWS.name

    def create(stack: ExitStack) -> int:
        folder = stack.enter_context(atomic_write(FEATURES))
        folder.mkdir()
        write_json(folder / FEATURES_INFO.name, info)
        with (folder / FEATURE_ROWS.name).open("wb") as file:
            write_header(file, np.dtype(dtype), shape)
            return file.tell()

    def write_part(start: int) -> None:
        """Write at the rows' place: to a memory map a full disk would be SIGBUS, and no exception."""
        first, end = (shape[0] * rank // group.world for rank in (group.rank, group.rank + 1))
        with storage_errors(path), path.open("r+b") as file:
            file.seek(start + first * shape[1] * np.dtype(dtype).itemsize)
            for begin in range(first, end, ROWS):
                part = slice(begin, min(begin + ROWS, end))
                rows = np.asarray(read(part), dtype)
                if rows.shape != (part.stop - part.start, shape[1]):
                    raise ValueError(f"rows of shape {rows.shape} for {part}")
                file.write(rows.tobytes())

    with ExitStack() as stack:
        start = group.broadcast_from_rank_zero(lambda: create(stack))
        group.run_on_all(lambda: write_part(start))
