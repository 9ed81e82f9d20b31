"""Checks of this machine against ``params.yaml``: disk, the time of a save and of a training step, the GPU."""

import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.paths import PREPARED, cache_folder
from headstart.data.dataset import SPLITS
from headstart.data.shards import read_index
from headstart.distributed.launch import SlurmTasks
from headstart.distributed.process_group import device_of
from headstart.models.backbone import create_backbone, input_config
from headstart.models.stem import expected_channels
from headstart.slurm.doctor.batch_checks import Finding, Resources, parse_seconds, parse_signal
from headstart.training.autotune import check_precision, seconds_a_step
from headstart.training.resolve import epochs_for

CHECKPOINTS = 4
"""Checkpoints on disk at once: the last, the one before, the best, and the one being written."""
WRITE_TEST_S = 5
MAX_BATCH = {"cpu": 4, "mps": 8, "cuda": 32}
"""Images per measured step, so that the measurement takes a few seconds; larger batches take no more per image."""


class Sizes(NamedTuple):
    """Bytes of a backbone's weights, which are also its gradients', and of a checkpoint; numbers per feature row."""

    weights: int
    checkpoint: int
    width: int


def sizes_of(params: Params) -> Sizes:
    """Compute the sizes without allocating the weights; raises UserError where timm has no such backbone."""
    with torch.device("meta"):
        model = _untrained(params)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    # As many in a checkpoint, with the weights and without the gradients.
    return Sizes(weights, weights * params.finetune.copies_of_weights, cast("int", model.num_features))


def _untrained(params: Params) -> nn.Module:
    size, args, in_chans = params.backbone.fixed_size, params.backbone.args, expected_channels(params)
    return create_backbone(params.backbone.name, pretrained=False, image_size=size, args=args, in_chans=in_chans)


def check_disk(params: Params, options: Mapping[str, str], sizes: Sizes) -> Iterator[Finding]:
    """Compare free disk with the size of features and checkpoints, and ``--signal``'s lead with the time of a save."""
    images = len(read_index(PREPARED)) if PREPARED.exists() else 0
    features = images * sizes.width * np.dtype(params.features.dtype).itemsize
    cache = cache_folder(params.run.cache)
    cache.mkdir(parents=True, exist_ok=True)
    needed = {cache: features + CHECKPOINTS * sizes.checkpoint, Path(): features + 2 * sizes.weights}
    for folder in needed:
        on_same_disk = sum(size for other, size in needed.items() if other.stat().st_dev == folder.stat().st_dev)
        if (free := shutil.disk_usage(folder).free) < on_same_disk:
            what = f"{free / 1e9:.1f} GB are free, and {on_same_disk / 1e9:.1f} GB are needed for features, "
            what += f"{CHECKPOINTS} checkpoints of {sizes.checkpoint / 1e9:.2f} GB and the model: free some, or set "
            yield Finding("error", "disk-full", f"{folder.resolve()}: {what}run.cache to another disk")
            return
    seconds, megabytes = _seconds_to_write(cache, sizes.checkpoint), sizes.checkpoint / 1e6
    yield Finding("info", "save", f"a checkpoint of {megabytes:.0f} MB is saved in {seconds:.1f} s in {cache}")
    if "signal" in options and (lead := parse_signal(options["signal"]).seconds) < 2 * seconds + 10:
        what = f"--signal: {lead} s before the end are too few for a save of {seconds:.0f} s"
        yield Finding("error", "signal-too-late", f"{what}: use @{20 + 3 * seconds:.0f}")


def _seconds_to_write(folder: Path, size: int) -> float:
    """Write and sync so many bytes; what would take long is extrapolated from a part."""
    block = os.urandom(2**20)
    with TemporaryFile(dir=folder) as file:
        start, written = time.perf_counter(), 0
        while written < size and time.perf_counter() - start < WRITE_TEST_S:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return (time.perf_counter() - start) * size / written


def use_own_gpu() -> None:
    """Select this task's own GPU, where each of Slurm's tasks sees all GPUs of its node."""
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(SlurmTasks().local_rank() % gpus)


def check_device(params: Params) -> Iterator[Finding]:
    """Check that torch can use the GPUs that are there, and the precision on them."""
    has_gpu = os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0" or shutil.which("nvidia-smi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if has_gpu and not is_usable and params.run.accelerator != "cpu":
        reason = f": {str(caught[0].message).splitlines()[0]}" if caught else ""
        build = f"of CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        what = f"there are GPUs, but torch {torch.__version__}, built {build}, can't use them{reason}"
        yield Finding("error", "torch-without-gpu", f"{what}; install a torch for this driver (`nvidia-smi` names it)")
    try:
        check_precision(params.finetune.precision, device_of(params.run))
    except UserError as error:
        yield Finding("error", "device-unsupported", str(error))


def seconds_per_image(params: Params) -> float:
    """Measure forward and backward of the backbone on this process's device, in seconds per image."""
    model, device = _untrained(params), device_of(params.run)
    size = min(max(2, params.finetune.batch_size), MAX_BATCH[device.type])
    bf16 = params.finetune.precision == "bf16-mixed"
    (step,) = seconds_a_step(model, input_config(model, params.backbone.fixed_size), device, size, (bf16,))
    return step / size


def check_time(
    params: Params, options: Mapping[str, str], resources: Resources, seconds_per_image: float
) -> Iterator[Finding]:
    """Compare the time limit with the time of all epochs, from the seconds per training image on one task."""
    if not PREPARED.exists():
        return
    images = int((read_index(PREPARED)["split"] == SPLITS.index("train")).sum())
    epochs = params.finetune.epochs
    if epochs == "auto":
        epochs = epochs_for(images, params.finetune.batch_size)
    needed = epochs * images * seconds_per_image / resources.tasks
    what = f"{epochs} epochs of {images} images take about {needed / 3600:.1f} h"
    limit = parse_seconds(options.get("time", "0"))
    if needed > limit and "requeue" not in options:
        what += f" on {resources.tasks} tasks, and --time is {limit / 3600:.1f} h: raise it, or add #SBATCH --requeue"
        yield Finding("warning", "time-limit-short", what)
    else:
        starts = max(1, math.ceil(needed / limit))
        yield Finding("info", "time", f"{what}, in {starts} starts of the job" if starts > 1 else what)
