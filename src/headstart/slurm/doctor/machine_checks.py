"""Checks this machine against ``params.yaml``: disk, how long a save and a step take, the GPU."""

import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.paths import PREPARED, cache_folder
from headstart.data.dataset import SPLITS
from headstart.data.shards import read_index
from headstart.distributed.process_group import SlurmTasks, device_of
from headstart.models.backbone import create_backbone, input_config
from headstart.slurm.doctor.batch_checks import Resources
from headstart.slurm.doctor.batch_script import seconds, signal
from headstart.slurm.doctor.finding import Finding
from headstart.training.autotune import check_precision, seconds_a_step

STATES = 4
"""Copies of a state on disk at once: the last, the one before, the best, and the one being written."""
SECONDS_OF_WRITING = 5
LARGEST_BATCH = {"cpu": 4, "mps": 8, "cuda": 32}
"""Images a measured step, so that it takes a few seconds; the seconds an image of larger steps are no more."""


@dataclass(frozen=True)
class Sizes:
    """What a backbone takes on disk.

    Attributes:
        weights: bytes, as many as its gradients have.
        state: bytes of a saved state: weights, the optimiser's moments, their average, what the ledger took down.
        width: numbers a feature row.
    """

    weights: int
    state: int
    width: int


def sizes_of(params: Params) -> Sizes:
    """Work the sizes out without making the weights; raises UserError where timm has no such backbone."""
    backbone, finetune = params.backbone, params.finetune
    with torch.device("meta"):
        model = create_backbone(backbone.name, pretrained=False, image_size=backbone.image_size, args=backbone.args)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    moments = int(finetune.momentum > 0) if finetune.optimizer == "sgd" else 2
    # Within an epoch, the weights at its start, and what then pulled at them where Adam's second moments scale that.
    books = 1 + (finetune.optimizer != "sgd" and finetune.l2.kind != "decoupled")
    copies = 1 + moments + books + (finetune.ema is not None)
    return Sizes(weights, weights * copies, cast("int", model.num_features))


def check_disk(params: Params, options: Mapping[str, str], sizes: Sizes) -> Iterator[Finding]:
    """Compare free disk with what features and states take, and ``--signal``'s lead with the time of a save."""
    images = len(read_index(PREPARED)) if PREPARED.exists() else 0
    rows = images * sizes.width * np.dtype(params.features.dtype).itemsize
    cache = cache_folder(params.run.cache)
    cache.mkdir(parents=True, exist_ok=True)
    needs = {cache: rows + STATES * sizes.state, Path(): rows + 2 * sizes.weights}
    for folder in needs:
        shared = sum(size for other, size in needs.items() if other.stat().st_dev == folder.stat().st_dev)
        if (free := shutil.disk_usage(folder).free) < shared:
            what = (
                f"{free / 1e9:.1f} GB are free, and {shared / 1e9:.1f} GB are needed for features, {STATES} states of "
            )
            what += f"{sizes.state / 1e9:.2f} GB and the model: free some, or set run.cache to another disk"
            yield Finding("error", "disk-full", f"{folder.resolve()}: {what}")
            return
    took = _seconds_to_write(cache, sizes.state)
    yield Finding("info", "save", f"a state of {sizes.state / 1e6:.0f} MB is saved in {took:.1f} s in {cache}")
    if "signal" in options and (lead := signal(options["signal"]).seconds) < 2 * took + 10:
        what = f"--signal: {lead} s before the end are too few for a save of {took:.0f} s: use @{20 + 3 * took:.0f}"
        yield Finding("error", "signal-too-late", what)


def _seconds_to_write(folder: Path, size: int) -> float:
    """Write and sync so many bytes; what would take long is estimated from a part."""
    path, block = folder / f"doctor-{os.getpid()}", os.urandom(2**20)
    began, written = time.perf_counter(), 0
    try:
        with path.open("wb") as file:
            while written < size and time.perf_counter() - began < SECONDS_OF_WRITING:
                written += file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) * size / written
    finally:
        path.unlink(missing_ok=True)


def use_own_gpu() -> None:
    """Compute on this task's own GPU from now on, where each of Slurm's tasks sees all of its node."""
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(SlurmTasks().local_rank() % gpus)


def check_device(params: Params) -> Iterator[Finding]:
    """Check that torch can use the GPUs that are there, and the precision on them."""
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0" or shutil.which("nvidia-smi")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if given and not usable and params.run.accelerator != "cpu":
        why = f": {str(said[0].message).splitlines()[0]}" if said else ""
        built = f"of CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        what = f"there are GPUs, but torch {torch.__version__}, built {built}, can't use them{why}"
        yield Finding("error", "torch-without-gpu", f"{what}; install a torch for this driver (`nvidia-smi` names it)")
    try:
        check_precision(params.finetune.precision, device_of(params.run))
    except UserError as error:
        yield Finding("error", "device-unsupported", str(error))


def seconds_an_image(params: Params) -> float:
    """Measure forward and backward of the backbone on this process's device, in seconds an image."""
    backbone, device = params.backbone, device_of(params.run)
    model = create_backbone(backbone.name, pretrained=False, image_size=backbone.image_size, args=backbone.args)
    size = min(max(2, params.finetune.batch_size), LARGEST_BATCH[device.type])
    bf16 = params.finetune.precision == "bf16-mixed"
    (step,) = seconds_a_step(model, input_config(model, backbone.image_size), device, size, (bf16,))
    return step / size


def check_time(params: Params, options: Mapping[str, str], resources: Resources, image: float) -> Iterator[Finding]:
    """Compare the time limit with what all epochs take at ``picture`` seconds a training image and task."""
    if not PREPARED.exists():
        return
    images = int((read_index(PREPARED)["split"] == SPLITS.index("train")).sum())
    need = params.finetune.epochs * images * image / resources.tasks
    what = f"{params.finetune.epochs} epochs of {images} images take about {need / 3600:.1f} h"
    limit = seconds(options.get("time", "0"))
    if need > limit and "requeue" not in options:
        what += f" on {resources.tasks} tasks, and --time is {limit / 3600:.1f} h: raise it, or add #SBATCH --requeue"
        yield Finding("warning", "time-limit-short", what)
    else:
        starts = max(1, math.ceil(need / limit))
        yield Finding("info", "time", f"{what}, in {starts} starts of the job" if starts > 1 else what)
