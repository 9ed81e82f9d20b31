"""The data module: global batches whose make-up depends on (seed, epoch) alone, whatever the number of processes.

Every process draws the same permutation and takes its part of each global batch; an image's augmentation follows from
(seed, epoch, image id). So 1, 2 and 4 processes see the same batches of the same pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset, read_labels
from headstart.data.loader import evaluation_pixels, loader_arguments
from headstart.distributed.process_group import ProcessGroup
from headstart.training.augment import DRAWS, MIX_DRAWS, Augment, further_transforms, mix, uniform

Rows = NDArray[np.int64]

MIXING_STREAM = 1
"""Sets the random numbers of mixtures apart from those of images."""


class Batch(NamedTuple):
    """Images and what they show.

    Attributes:
        pixels: uint8 (n, height, width, 3).
        labels: int64 (n,).
        partners: int64 (n,), the labels of the images that are mixed in; None where nothing is mixed.
        shares: float32 (n,), the share that each image itself has; None likewise.
    """

    pixels: Tensor
    labels: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None


class BatchSpec(NamedTuple):
    """This rank's share of a part of a global batch.

    Attributes:
        epoch: from 0.
        order: int64 (n,), places in the epoch's order: what a mixture's random numbers follow from.
        places: int64 (n,), places among the training images.
        partners: int64 (n,), likewise of the images that would be mixed in: each one's neighbour in the global batch,
            which is as random as any and most often the same rank's.
    """

    epoch: int
    order: Rows
    places: Rows
    partners: Rows


class GlobalBatchSampler(Sampler[BatchSpec]):
    """Yields the parts of each global batch that are this rank's.

    The last images of an epoch's permutation that do not fill a global batch wait for another epoch.
    """

    def __init__(self, count: int, finetune: FinetuneConfig, rank: int, world: int, parts: int) -> None:
        """Say whose share this is.

        Args:
            count: training images.
            finetune: ``batch_size`` and ``seed`` are used.
            rank: this process's.
            world: number of processes.
            parts: that a rank's share of a global batch is computed in.

        Raises:
            UserError: a process would have no image in some part of a batch.
        """
        self._count, self._seed, self._parts, self._rank, self._world = count, finetune.seed, parts, rank, world
        self.batch_size = global_batch_size(count, finetune)
        self._epoch = 0
        self._begin = 0, 0
        if self.batch_size < world * parts:
            raise UserError(
                f"finetune.batch_size: {self.batch_size} images can't be shared by {world} processes in "
                f"{parts} parts (finetune.accumulate): raise the first or lower the others"
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes next; Lightning does."""
        self._epoch = epoch

    def begin_at(self, epoch: int, step: int) -> None:
        """Leave out the steps of an epoch that were taken before an interruption."""
        self._epoch, self._begin = epoch, (epoch, step)

    def __len__(self) -> int:
        return self._count // self.batch_size * self._parts

    def __iter__(self) -> Iterator[BatchSpec]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._count)
        begin_epoch, step = self._begin
        taken = step * self.batch_size if self._epoch == begin_epoch else 0
        for start in range(taken, self._count - self.batch_size + 1, self.batch_size):
            whole = np.arange(start, start + self.batch_size)
            mine = np.array_split(whole, self._world)[self._rank]
            for part in np.array_split(mine, self._parts):
                neighbours = np.minimum(start + ((part - start) ^ 1), whole[-1])
                yield BatchSpec(self._epoch, part, order[part], order[neighbours])


def global_batch_size(count: int, finetune: FinetuneConfig) -> int:
    """Return the images an optimiser step: ``batch_size``, or all of them where there are fewer."""
    return min(finetune.batch_size, count)


class TrainDataset(Dataset[Batch]):
    """Makes one augmented batch at a time; asked with what ``GlobalBatchSampler`` yields."""

    def __init__(self, prepared: PreparedDataset, finetune: FinetuneConfig) -> None:
        """Read the training split's labels."""
        self._prepared, self._seed, self._settings = prepared, finetune.seed, finetune.augment
        self.rows, self.labels = prepared.rows("train"), read_labels("train", prepared.folder)
        _, height, width = prepared.input["input_size"]
        augment = finetune.augment
        self._augment = Augment(
            (height, width),
            augment.scale,
            augment.ratio,
            augment.hflip,
            augment.vflip,
            prepared.input["interpolation"],
            further_transforms(augment.policy, augment.color_jitter, augment.erasing, prepared.input["mean"]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: BatchSpec) -> Batch:
        labels, partner_labels = (torch.from_numpy(self.labels[places]) for places in (part.places, part.partners))
        if not (self._settings.mixup or self._settings.cutmix):
            return Batch(self._pixels(part.epoch, part.places), labels)
        places, where = np.unique([part.places, part.partners], return_inverse=True)
        images, partners = self._pixels(part.epoch, places)[torch.from_numpy(where.reshape(2, -1))]
        draws = uniform(MIX_DRAWS, MIXING_STREAM, self._seed, part.epoch, part.order)
        mixed, shares = mix(images, partners, draws, mixup=self._settings.mixup, cutmix=self._settings.cutmix)
        return Batch(mixed, labels, partner_labels, shares)

    def _pixels(self, epoch: int, places: Rows) -> Tensor:
        rows = self.rows[places]
        draws = uniform(DRAWS, self._seed, epoch, self._prepared.ids[rows])
        return self._augment([self._prepared.pixels(int(row)) for row in rows], draws)


class ValidationDataset(Dataset[Batch]):
    """The validation split as evaluation sees it; asked with an array of places."""

    def __init__(self, prepared: PreparedDataset) -> None:
        """Read the validation split's labels."""
        self._prepared = prepared
        self.rows, self.labels = prepared.rows("validation"), read_labels("validation", prepared.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Rows) -> Batch:
        return Batch(evaluation_pixels(self._prepared, self.rows[places]), torch.from_numpy(self.labels[places]))


class FineTuneDataModule(LightningDataModule):
    """Training and validation batches for this process."""

    def __init__(
        self, prepared: PreparedDataset, finetune: FinetuneConfig, run: RunConfig, process_group: ProcessGroup
    ) -> None:
        """Open both splits."""
        super().__init__()
        self._finetune, self._run, self._process_group = finetune, run, process_group
        self._begin = 0, 0
        self.train, self.validation = TrainDataset(prepared, finetune), ValidationDataset(prepared)
        if len(self.validation) < process_group.world:
            raise UserError(
                f"{len(self.validation)} validation images can't be shared by {process_group.world} processes: raise "
                "prepare.split.validation, or start fewer"
            )

    def begin_at(self, epoch: int, step: int) -> None:
        """Go on at this optimiser step of this epoch, both from 0."""
        self._begin = epoch, step

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's micro-batches."""
        sampler = GlobalBatchSampler(
            len(self.train), self._finetune, self._process_group.rank, self._process_group.world, self._parts
        )
        sampler.begin_at(*self._begin)
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's validation images: every image is one rank's, none is repeated to fill a batch."""
        mine, size = (
            np.arange(self._process_group.rank, len(self.validation), self._process_group.world),
            self._validation_size,
        )
        return self._loader(self.validation, [mine[i : i + size] for i in range(0, len(mine), size)])

    def validation_batches_of_all(self) -> int:
        """Return the number of validation batches that every rank has at least."""
        return -(-(len(self.validation) // self._process_group.world) // self._validation_size)

    @property
    def _parts(self) -> int:
        assert self.trainer is not None
        return self.trainer.accumulate_grad_batches

    @property
    def _validation_size(self) -> int:
        return max(1, self._finetune.batch_size // self._process_group.world // self._parts)

    def _loader(self, images: Dataset[Batch], batches: "Sampler[BatchSpec] | list[Rows]") -> DataLoader[Batch]:
        """Load whole batches: ``batch_size=None`` hands a part, or a batch's places, to the data set as it is."""
        arguments = loader_arguments(self._run, self._process_group)
        return DataLoader(images, sampler=batches, persistent_workers=arguments["num_workers"] > 0, **arguments)
