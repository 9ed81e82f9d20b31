"""The data module: global batches that depend on (seed, epoch) alone, whatever the number of processes.

Every process computes the same order and takes its part of each global batch; an image's augmentation follows from
(seed, epoch, image id, its repeat), a mixture from (seed, epoch, position). So 1, 2 and 4 processes see the
same batches of the same pixels.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.config.finetune import FinetuneConfig, ResolvedAugmentConfig
from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.loader import blank_pixels, evaluation_pixels, in_shared_memory, loader_arguments
from headstart.distributed.process_group import ProcessGroup
from headstart.training.augment import (
    DRAWS,
    MIX_DRAWS,
    Augment,
    band_transforms,
    mix,
    torchvision_transforms,
    uniform,
)
from headstart.training.order import EpochOrder, Indices, WeightedDraws

MIXING_STREAM = 1
"""Separates the random numbers of mixtures from those of images."""
AT_ONCE = 4096
"""Positions whose images are computed together: those of a batch alone would take several times as long."""
BLOCK_BYTES = 2**20
"""Of a block, about: what disks and network file systems read at nearly their full speed."""


class Batch(NamedTuple):
    """Images and their values; partners and fractions are None without mixing."""

    pixels: Tensor  # uint8 (n, height, width, 3), or float32 (n, height, width, bands)
    values: Tensor  # the target's: int64 (n,) or float32 (n, …)
    partners: Tensor | None = None  # likewise, the values of the images that are mixed in
    fractions: Tensor | None = None  # float32 (n,), how much of each mixture is the image itself


class BatchSpec(NamedTuple):
    """Which images a batch has: this rank's part of a global batch, or of one of its accumulation steps.

    The partner of an image, which would be mixed in, is its neighbour in the global batch: as random as any, and most
    often the same rank's.
    """

    epoch: int  # from 0
    positions: Indices  # (n,), in the epoch's order: a mixture's random numbers follow from them
    indices: Indices  # (n,), of training images; with ``finetune.sampling`` places, at which images are drawn
    partners: Indices  # (n,), likewise
    next_window: Indices = np.empty(0, np.int64)  # training images to fetch from the disk for a window later


class GlobalBatchSampler(Sampler[BatchSpec]):
    """Yields this rank's part of each global batch, one accumulation step at a time.

    The last training images in an epoch's order that do not fill a global batch are left out of that epoch.

    Raises:
        UserError: a process would have no image in some accumulation step.
    """

    def __init__(
        self, order: EpochOrder, finetune: FinetuneConfig, rank: int, world: int, accumulation_steps: int
    ) -> None:
        self._order, self._rank, self._world = order, rank, world
        self._accumulation_steps = accumulation_steps
        self.batch_size = global_batch_size(order.count, finetune)
        self._epoch = 0
        self._start = 0, 0
        if self.batch_size < world * accumulation_steps:
            raise UserError(
                f"finetune.batch_size: {self.batch_size} images can't be shared by {world} processes in "
                f"{accumulation_steps} parts (finetune.accumulate): raise the first or lower the others"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next; Lightning calls this."""
        self._epoch = epoch

    def start_at(self, epoch: int, step: int) -> None:
        """Leave out the optimiser steps of an epoch that were taken before an interruption."""
        self._epoch, self._start = epoch, (epoch, step)

    def __len__(self) -> int:
        return self._order.count // self.batch_size * self._accumulation_steps

    def __iter__(self) -> Iterator[BatchSpec]:
        start_epoch, step = self._start
        taken = step * self.batch_size if self._epoch == start_epoch else 0
        end = self._order.count // self.batch_size * self.batch_size
        mine = np.array_split(np.arange(self.batch_size), self._world)[self._rank]
        parts = np.array_split(mine, self._accumulation_steps)
        at_once = -(-AT_ONCE // self.batch_size) * self.batch_size
        for start in range(taken, end, at_once):
            positions = np.arange(start, min(start + at_once, end))
            images = self._order.images(self._epoch, positions)
            later = self._order.next_window(self._epoch, positions) if self._order.windows > 1 else None
            for begin in range(0, len(positions), self.batch_size):
                for part in parts:
                    places = begin + part
                    # 0 and 1, 2 and 3 … are each other's; the last of an odd number has itself.
                    neighbours = begin + np.minimum(part ^ 1, self.batch_size - 1)
                    spec = BatchSpec(self._epoch, positions[places], images[places], images[neighbours])
                    yield spec if later is None else spec._replace(next_window=later[places])


def global_batch_size(count: int, finetune: FinetuneConfig) -> int:
    """Return the images of an optimiser step: ``batch_size``, or all ``count`` where there are fewer."""
    return min(finetune.batch_size, count)


class TrainDataset(Dataset[Batch]):
    """Makes augmented batches, one for each ``BatchSpec``."""

    def __init__(self, prepared: PreparedDataset, finetune: FinetuneConfig) -> None:
        """Open the training images; raises UserError where they can't be changed as they shall be."""
        self._prepared, self._seed, self._settings = prepared, finetune.seed, finetune.augment
        self.rows, self.values = prepared.rows("train"), read_values("train", prepared.folder)
        self._draws: WeightedDraws | None = None
        if finetune.sampling != "none":
            weights = prepared.target.rarities(self.values)
            self._draws = WeightedDraws(np.sqrt(weights) if finetune.sampling == "sqrt" else weights, finetune.seed)
        _, height, width = prepared.input["input_size"]
        bands = prepared.bands
        self.image_bytes = blank_pixels(1, prepared.input).nbytes
        augment = ResolvedAugmentConfig.model_validate(self._settings.model_dump())
        if augment.quarter_turn and height != width:
            size = f"the backbone sees {height} x {width} pixels"
            raise UserError(f"finetune.augment.quarter_turn: {size}, and only a square can be turned: set it to 0")
        if refusal := augment.refusal(banded=bands is not None):
            raise UserError(refusal)
        transforms = (
            torchvision_transforms(augment.policy, augment.color_jitter, augment.erasing, prepared.input["mean"])
            if bands is None
            else band_transforms(
                bands, gain=augment.gain, offset=augment.offset, noise=augment.noise, erasing=augment.erasing
            )
        )
        self._augment = Augment(
            (height, width),
            augment.scale,
            augment.ratio,
            augment.hflip,
            augment.vflip,
            prepared.input["interpolation"],
            transforms,
            augment.quarter_turn,
            bands,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, spec: BatchSpec) -> Batch:
        read, _ = self._drawn(spec.epoch, np.concatenate([spec.next_window, spec.indices]))
        self._prepared.prefetch(self.rows[read])
        values = self._values(spec.epoch, spec.indices)
        if not (self._settings.mixup or self._settings.cutmix):
            return Batch(self._pixels(spec.epoch, spec.indices), values)
        indices, inverse = np.unique([spec.indices, spec.partners], return_inverse=True)
        images, partners = self._pixels(spec.epoch, indices)[torch.from_numpy(inverse.reshape(2, -1))]
        draws = uniform(MIX_DRAWS, MIXING_STREAM, self._seed, spec.epoch, spec.positions)
        mixed, fractions = mix(images, partners, draws, mixup=self._settings.mixup, cutmix=self._settings.cutmix)
        return Batch(mixed, values, self._values(spec.epoch, spec.partners), fractions)

    def _drawn(self, epoch: int, indices: Indices) -> tuple[Indices, Indices]:
        """Return the images, and how often each was there before in this epoch."""
        return (indices, np.zeros_like(indices)) if self._draws is None else self._draws.at(epoch, indices)

    def _values(self, epoch: int, indices: Indices) -> Tensor:
        return torch.from_numpy(self.values[self._drawn(epoch, indices)[0]])

    def _pixels(self, epoch: int, indices: Indices) -> Tensor:
        images, repeats = self._drawn(epoch, indices)
        rows = self.rows[images]
        draws = uniform(DRAWS, self._seed, epoch, self._prepared.ids[rows])
        if (again := repeats > 0).any():
            draws[again] = uniform(DRAWS, self._seed, epoch, self._prepared.ids[rows[again]], repeats[again])
        return self._augment([self._prepared.pixels(int(row)) for row in rows], draws)


class ValidationDataset(Dataset[Batch]):
    """Makes batches of the validation split as evaluation sees it, one for each array of indices."""

    def __init__(self, prepared: PreparedDataset) -> None:
        self._prepared = prepared
        self.rows, self.values = prepared.rows("validation"), read_values("validation", prepared.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Indices) -> Batch:
        return Batch(evaluation_pixels(self._prepared, self.rows[indices]), torch.from_numpy(self.values[indices]))


class FineTuneDataModule(LightningDataModule):
    """Training and validation batches of this process."""

    def __init__(
        self, prepared: PreparedDataset, finetune: FinetuneConfig, run: RunConfig, process_group: ProcessGroup
    ) -> None:
        """Open both splits; raises UserError where there are fewer validation images than processes."""
        super().__init__()
        self._finetune, self._run, self._process_group = finetune, run, process_group
        self._start = 0, 0
        self.train, self.validation = TrainDataset(prepared, finetune), ValidationDataset(prepared)
        assert finetune.shuffle_windows != "auto"  # the plan has chosen
        size = prepared.training_size()
        count, windows = size["train_images"], finetune.shuffle_windows
        block = max(1, min(BLOCK_BYTES * count // size["train_bytes"], count // windows))
        self._order = EpochOrder(count, finetune.seed, windows, block)
        if len(self.validation) < process_group.world:
            raise UserError(
                f"{len(self.validation)} validation images can't be shared by {process_group.world} processes: raise "
                "prepare.split.validation, or start fewer"
            )

    def start_at(self, epoch: int, step: int) -> None:
        """Begin with this optimiser step of this epoch, both from 0."""
        self._start = epoch, step

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this rank's batches."""
        group = self._process_group
        sampler = GlobalBatchSampler(self._order, self._finetune, group.rank, group.world, self._accumulation_steps)
        sampler.start_at(*self._start)
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this rank's validation images: every image is one rank's, none is repeated."""
        group, size = self._process_group, self._validation_batch_size
        mine = np.arange(group.rank, len(self.validation), group.world)
        return self._loader(self.validation, [mine[i : i + size] for i in range(0, len(mine), size)])

    def validation_batches_of_all(self) -> int:
        """Return the number of validation batches that every rank has at least."""
        return -(-(len(self.validation) // self._process_group.world) // self._validation_batch_size)

    @property
    def _accumulation_steps(self) -> int:
        assert self.trainer is not None
        return self.trainer.accumulate_grad_batches

    @property
    def _validation_batch_size(self) -> int:
        return max(1, self._finetune.batch_size // self._process_group.world // self._accumulation_steps)

    def _loader(self, images: Dataset[Batch], batches: "Sampler[BatchSpec] | list[Indices]") -> DataLoader[Batch]:
        """Load whole batches: with ``batch_size=None`` the data set gets each ``BatchSpec``, or indices, as it is."""
        arguments = self._loader_arguments
        return DataLoader(
            images,
            sampler=batches,
            collate_fn=in_shared_memory,
            persistent_workers=arguments["num_workers"] > 0,
            **arguments,
        )

    @cached_property
    def _loader_arguments(self) -> dict[str, Any]:
        """For both loaders, before either fills shared memory: they never work at the same time."""
        part = -(-self._finetune.batch_size // (self._process_group.world * self._accumulation_steps))
        return loader_arguments(self._run, self._process_group, part * self.train.image_bytes)
