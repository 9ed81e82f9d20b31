"""The data module: global batches whose make-up depends on (seed, epoch) alone, whatever the number of processes.

Every process draws the same permutation and takes its part of each global batch; a picture's augmentation follows from
(seed, epoch, image id). So 1, 2 and 4 processes see the same batches of the same pixels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.assembly.inference import evaluation_pixels
from headstart.ground.artifacts import Prepared, read_labels
from headstart.ground.errors import UserError
from headstart.ground.finetune import Finetune
from headstart.ground.params import Run
from headstart.libraries.augment import DRAWS, CropAndFlip
from headstart.libraries.randomness import uniform

Rows = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]
"""Pixels uint8 (n, height, width, 3) and labels int64 (n,)."""

WORKERS_A_GPU = 8


class GlobalBatches(Sampler[tuple[int, Rows]]):
    """Yields (epoch, places) for each micro-batch of this rank: its share of ``accumulate`` parts of a global batch.

    The last pictures of an epoch's permutation that do not fill a global batch wait for another epoch.
    """

    def __init__(self, count: int, finetune: Finetune, rank: int, world: int) -> None:
        """Say whose share this is.

        Args:
            count: training pictures.
            finetune: ``batch_size``, ``accumulate`` and ``seed`` are used.
            rank: this process's.
            world: number of processes.

        Raises:
            UserError: a process would have no picture in some part of a batch.
        """
        self._count, self._seed, self._parts, self._rank, self._world = (
            count,
            finetune.seed,
            finetune.accumulate,
            rank,
            world,
        )
        self.batch_size = global_batch_size(count, finetune)
        self._epoch = 0
        if self.batch_size < world * self._parts:
            raise UserError(
                f"finetune.batch_size: {self.batch_size} pictures can't be shared by {world} processes in "
                f"{self._parts} parts (finetune.accumulate): raise the first or lower the others"
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes next; Lightning does."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count // self.batch_size * self._parts

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._count)
        for start in range(0, self._count - self.batch_size + 1, self.batch_size):
            mine = np.array_split(order[start : start + self.batch_size], self._world)[self._rank]
            for part in np.array_split(mine, self._parts):
                yield self._epoch, part


def global_batch_size(count: int, finetune: Finetune) -> int:
    """Give the pictures an optimiser step: ``batch_size``, or all of them where there are fewer."""
    return min(finetune.batch_size, count)


class TrainingPictures(Dataset[Batch]):
    """Makes one augmented batch at a time; asked with what ``GlobalBatches`` yields."""

    def __init__(self, prepared: Prepared, finetune: Finetune) -> None:
        """Read the training split's labels."""
        self._prepared, self._seed = prepared, finetune.seed
        self.rows, self.labels = prepared.rows("train"), read_labels("train", prepared.folder)
        _, height, width = prepared.input["input_size"]
        augment = finetune.augment
        self._augment = CropAndFlip(
            (height, width), augment.scale, augment.ratio, augment.hflip, prepared.input["interpolation"]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, Rows]) -> Batch:
        epoch, places = item
        rows = self.rows[places]
        draws = uniform(DRAWS, self._seed, epoch, self._prepared.ids[rows])
        pictures = [self._augment(self._prepared.pixels(int(row)), draw) for row, draw in zip(rows, draws, strict=True)]
        return torch.stack(pictures), torch.from_numpy(self.labels[places])


class ValidationPictures(Dataset[Batch]):
    """The validation split as evaluation sees it; asked with an array of places."""

    def __init__(self, prepared: Prepared) -> None:
        """Read the validation split's labels."""
        self._prepared = prepared
        self.rows, self.labels = prepared.rows("validation"), read_labels("validation", prepared.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Rows) -> Batch:
        return evaluation_pixels(self._prepared, self.rows[places]), torch.from_numpy(self.labels[places])


class Pictures(LightningDataModule):
    """Training and validation batches for this process."""

    def __init__(self, prepared: Prepared, finetune: Finetune, run: Run) -> None:
        """Open both splits."""
        super().__init__()
        self._finetune, self._run = finetune, run
        self.train, self.validation = TrainingPictures(prepared, finetune), ValidationPictures(prepared)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give this rank's micro-batches."""
        assert self.trainer is not None
        sampler = GlobalBatches(len(self.train), self._finetune, self.trainer.global_rank, self.trainer.world_size)
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Give this rank's validation pictures: every picture is one rank's, none is repeated to fill a batch."""
        assert self.trainer is not None
        mine = np.arange(self.trainer.global_rank, len(self.validation), self.trainer.world_size)
        size = max(1, self._finetune.batch_size // self.trainer.world_size)
        return self._loader(self.validation, [mine[i : i + size] for i in range(0, len(mine), size)])

    def _loader(self, pictures: Dataset[Batch], batches: "Sampler[tuple[int, Rows]] | list[Rows]") -> DataLoader[Batch]:
        """Load whole batches: ``batch_size=None`` hands a batch's places to the data set as they are."""
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        workers = self._run.workers
        if workers == "auto":
            # On a CPU a loading process takes a core from the step.
            workers = WORKERS_A_GPU if on_gpu else 0
        return DataLoader(
            pictures,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
        )
