"""Inference over the prepared images on all ranks, which features, evaluate and export share; cached features.

All batches have one size, the last one is padded: with most libraries the last bits of an image's output depend on the
size of its batch, and here equal images must give equal bytes.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from headstart.config.schema import Params, RunConfig
from headstart.core.errors import UserError
from headstart.core.progress import Progress
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels, in_shared_memory, loader_arguments
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.memory import images_that_fit, live_bytes
from headstart.distributed.process_group import ProcessGroup
from headstart.features.cache import FeatureCache, image_key

logger = logging.getLogger(__name__)

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
    normalize = Normalize(prepared.input).to(process_group.device)
    batch_size = _fitting(batch_size, lambda pixels: function(normalize(pixels)), prepared, process_group, label)
    padded = np.pad(rows, (0, -len(rows) % batch_size), mode="edge") if len(rows) else rows
    batches = padded.reshape(-1, batch_size)
    # In the last round some ranks repeat the last batch.
    numbers = np.arange(0, len(batches), process_group.world) + process_group.rank
    mine: Any = batches[np.minimum(numbers, len(batches) - 1)]
    arguments = loader_arguments(run, process_group, batch_size * math.prod(prepared.input["input_size"]))
    loader = DataLoader(mine, collate_fn=partial(_read_pixels, prepared), **arguments)
    left = len(rows)
    with (
        Progress(label, len(rows)) as progress,
        watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog,
    ):
        for number, pixels in enumerate(loader, start=1):
            watchdog.beat(f"{label}, batch {number}")
            outputs = function(normalize(pixels.to(process_group.device, non_blocking=True)))
            for of_rank in process_group.gather_on_rank_zero(outputs.float().cpu()):
                if left:
                    count = min(batch_size, left)
                    left -= count
                    yield of_rank[:count].numpy()
                    progress.advance(count)


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
    pixels = torch.zeros(1, *prepared.input["input_size"][1:], 3, dtype=torch.uint8)
    per_image = SLACK * live_bytes(lambda: function(pixels))
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


def _read_pixels(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Any:
    return in_shared_memory(evaluation_pixels(prepared, rows))


def image_keys(prepared: PreparedDataset, process_group: ProcessGroup) -> list[bytes]:
    """Compute ``image_key`` of every image, in the order of rows; each rank reads a part of the images."""
    training = (prepared.splits == SPLITS.index("train")).tolist()
    count = len(training)
    # ``gather`` needs equally many from each rank: some compute the keys of the first images a second time.
    mine = [row % count for row in range(process_group.rank, count + -count % process_group.world, process_group.world)]
    keys = b"".join(image_key(prepared.pixels(row), training=training[row]) for row in mine)
    gathered = process_group.gather(torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(len(mine), -1))
    in_order = torch.stack(gathered, dim=1).flatten(0, 1)[:count]
    return [key.tobytes() for key in in_order.numpy()]


def compute_missing_features(
    function: Callable[[Tensor], Tensor],
    prepared: PreparedDataset,
    rows: NDArray[np.int64],
    keys: list[bytes],
    cache: FeatureCache | None,
    *,
    params: Params,
    process_group: ProcessGroup,
) -> tuple[int, float | None]:
    """Compute the features that the cache lacks, equal images once, and add them to it batch by batch.

    ``function`` is called by ``run_inference``; ``keys`` are the ``image_keys`` of the ``rows``; ``cache`` is None but
    on rank 0. Returns the number of features computed, and how many a second, None if there were none. Raises UserError
    if a feature is not finite.
    """

    def missing_places() -> NDArray[np.int64]:
        assert cache is not None  # rank 0 calls this
        missing = np.flatnonzero(np.fromiter(cache.missing(keys), bool, len(keys)))
        first = {keys[place]: place for place in reversed(missing)}  # of equal images
        return np.sort(np.fromiter(first.values(), np.int64, len(first)))

    places, batch_size = process_group.broadcast_from_rank_zero(missing_places), params.features.batch_size
    options: Any = {"batch_size": batch_size, "run": params.run, "process_group": process_group, "label": "features"}
    began, done = time.perf_counter(), 0
    for features in run_inference(function, prepared, rows[places], **options):
        if not np.isfinite(features).all():
            raise UserError("backbone.name: this backbone gives features that are not finite; its weights are damaged")
        if cache is not None:
            cache.add([keys[place] for place in places[done : done + len(features)]], features)
        done += len(features)
    return done, round(done / (time.perf_counter() - began), 1) if done else None
