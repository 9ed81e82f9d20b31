import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from headstart.config.finetune import FinetuneConfig
from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.loader import evaluation_pixels
from headstart.distributed.process_group import ProcessGroup
from headstart.training import datamodule
from headstart.training.datamodule import Batch, BatchSpec, FineTuneDataModule, GlobalBatchSampler, global_batch_size
from headstart.training.order import EpochOrder
from helpers.images import IMAGES, STORED, params, write_prepared

COUNT = 23


def finetune(batch_size: int, accumulate: int = 1, seed: int = 0, **changes: Any) -> FinetuneConfig:
    changes |= {"batch_size": batch_size, "accumulate": accumulate, "seed": seed}
    return params({f"finetune.{name}": value for name, value in changes.items()}).finetune


def places(section: FinetuneConfig, rank: int, world: int, epoch: int = 0, count: int = COUNT) -> list[list[int]]:
    """What a rank gets: the places in each of its micro-batches."""
    return [part.indices.tolist() for part in parts_of(section, rank, world, epoch, count)]


def parts_of(section: FinetuneConfig, rank: int, world: int, epoch: int = 0, count: int = COUNT) -> list[BatchSpec]:
    batches = GlobalBatchSampler(EpochOrder(count, section.seed), section, rank, world, section.accumulate)
    batches.set_epoch(epoch)
    got = list(batches)
    assert [part.epoch for part in got] == [epoch] * len(batches)
    return got


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_parts_of_all_ranks_are_the_same_global_batch(world: int, accumulate: int) -> None:
    whole = places(finetune(8), 0, 1, epoch=3)
    assert [len(batch) for batch in whole] == [8, 8]
    ranks = [places(finetune(8, accumulate), rank, world, epoch=3) for rank in range(world)]
    assert all(len(batches) == 2 * accumulate for batches in ranks)
    for step, batch in enumerate(whole):
        parts = [batches[step * accumulate + part] for batches in ranks for part in range(accumulate)]
        assert [place for part in parts for place in part] == batch
        assert all(len(part) == 8 // world // accumulate for part in parts)


def test_a_batch_that_does_not_divide_is_still_shared_whole() -> None:
    (whole, *_), ranks = places(finetune(7), 0, 1), [places(finetune(7, 2), rank, 3) for rank in range(3)]
    assert sorted(place for batches in ranks for part in batches[:2] for place in part) == sorted(whole)
    assert all(part for batches in ranks for part in batches)


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch_alone() -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            order = [place for batch in places(finetune(8, seed=seed), 0, 1, epoch) for place in batch]
            assert order == [place for batch in places(finetune(8, seed=seed), 0, 1, epoch) for place in batch]
            assert len(set(order)) == len(order) == 16
            assert set(order) <= set(range(COUNT))
            orders[tuple(order)] = (seed, epoch)
    assert len(orders) == 6
    seen = {place for epoch in range(12) for batch in places(finetune(8), 0, 1, epoch) for place in batch}
    assert seen == set(range(COUNT))  # those left out of one epoch are in another


@pytest.mark.parametrize("windows", [1, 3])
def test_an_interrupted_epoch_goes_on_where_it_was(windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "AT_ONCE", 16)  # so that several are computed at once, and not all
    order, section = EpochOrder(COUNT, 0, windows, 2), finetune(4)
    whole, rest, next_epoch = (GlobalBatchSampler(order, section, 1, 2, 1) for _ in range(3))
    whole.set_epoch(3)
    rest.start_at(3, 2)
    assert [part.indices.tolist() for part in rest] == [part.indices.tolist() for part in whole][2:]
    next_epoch.start_at(3, 2)
    next_epoch.set_epoch(4)
    whole.set_epoch(4)
    assert [part.indices.tolist() for part in next_epoch] == [part.indices.tolist() for part in whole]


def test_a_batch_is_all_there_is_where_there_is_less() -> None:
    assert global_batch_size(5, finetune(8)) == 5
    (batch,) = places(finetune(8), 0, 1, count=5)
    assert sorted(batch) == list(range(5))


@pytest.mark.parametrize(("batch_size", "accumulate", "world", "count"), [(3, 1, 4, 23), (6, 4, 2, 23), (8, 1, 4, 3)])
def test_a_batch_too_small_to_be_shared_is_refused(batch_size: int, accumulate: int, world: int, count: int) -> None:
    with pytest.raises(UserError, match=r"finetune\.batch_size") as caught:
        GlobalBatchSampler(EpochOrder(count, 0), finetune(batch_size, accumulate), 0, world, accumulate)
    assert f"{world} processes" in str(caught.value)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datamodule, "BLOCK_BYTES", 2 * STORED * STORED * 3)  # 2 images
    return write_prepared()


def images_of(
    prepared: PreparedDataset, rank: int = 0, world: int = 1, workers: int = 0, **changes: Any
) -> FineTuneDataModule:
    """The data module as the given rank's trainer would ask it."""
    section = finetune(4, **{"augment.hflip": 0.5, **changes})
    made = FineTuneDataModule(prepared, section, params({"run.workers": workers}).run, ProcessGroup(rank, world))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=section.accumulate)
    made.trainer = trainer
    return made


def test_only_a_square_can_be_turned(prepared: PreparedDataset) -> None:
    oblong = dataclasses.replace(
        prepared, spec=prepared.spec | {"input": {**prepared.input, "input_size": [3, 32, 24]}}
    )
    images_of(oblong)
    turned: dict[str, Any] = {"augment.quarter_turn": 0.5}
    with pytest.raises(UserError, match=r"finetune\.augment\.quarter_turn: the backbone sees 32 x 24 pixels"):
        images_of(oblong, **turned)


def epoch_of(loader: DataLoader[Batch], epoch: int) -> Iterator[Batch]:
    assert isinstance(loader.sampler, GlobalBatchSampler)
    loader.sampler.set_epoch(epoch)
    for batch in loader:
        assert (batch.pixels.dtype, batch.pixels.shape[1:]) == (torch.uint8, (32, 32, 3))
        assert batch.values.dtype == torch.int64
        yield batch


MIXUP: dict[str, Any] = {"augment.mixup": 0.4}
EVERYTHING = {
    "augment.policy": "randaugment",
    "augment.color_jitter": [0.4, 0.4, 0.4, 0.1],
    "augment.erasing": 0.5,
    "augment.vflip": 0.5,
    "augment.quarter_turn": 0.5,
    "augment.mixup": 0.4,
    "augment.cutmix": 1.0,
}


WINDOWS: dict[str, Any] = {"shuffle_windows": 3}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("changes", [{}, EVERYTHING, WINDOWS], ids=["plain", "everything", "windows"])
@pytest.mark.parametrize(
    ("world", "accumulate", "workers"), [(2, 1, 0), (4, 1, 0), (2, 2, 0), (1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 1, 2)]
)
def test_training_batches_are_the_same_bytes_whoever_loads_them(
    prepared: PreparedDataset, world: int, accumulate: int, workers: int, changes: dict[str, Any]
) -> None:
    whole = list(epoch_of(images_of(prepared, **changes).train_dataloader(), 1))
    assert len(whole) == IMAGES["train"] // 4
    loaders = [
        images_of(prepared, rank, world, workers, accumulate=accumulate, **changes).train_dataloader()
        for rank in range(world)
    ]
    parts = [list(epoch_of(loader, 1)) for loader in loaders]
    for step, batch in enumerate(whole):
        shares = [share for rank in parts for share in rank[step * accumulate : (step + 1) * accumulate]]
        for name, value in batch._asdict().items():
            same = [getattr(share, name) for share in shares]
            if value is None:
                assert same == [None] * len(shares)
            else:
                assert torch.equal(torch.cat(same), value)
        assert (batch.fractions is not None) == (changes is EVERYTHING)


def test_windows_are_fetched_before_they_are_read(prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever rank has the position: each image once a window before it is needed, and where it is needed."""
    asked: list[list[int]] = []
    monkeypatch.setattr(PreparedDataset, "prefetch", lambda _, rows: asked.append(rows.tolist()))
    rows, order, whole = prepared.rows("train"), EpochOrder(IMAGES["train"], 0, 3, 2), EpochOrder(IMAGES["train"], 0)
    list(epoch_of(images_of(prepared).train_dataloader(), 0))
    assert asked == rows[whole.images(0, np.arange(12))].reshape(3, 4).tolist()  # each batch its own
    asked.clear()
    for rank in (0, 1):
        list(epoch_of(images_of(prepared, rank, 2, **WINDOWS).train_dataloader(), 0))
    first, second, third = rows[order.images(0, np.arange(12))].reshape(3, 4)
    later, own = np.array(asked).reshape(2, 3, 2, 2).transpose(2, 1, 0, 3).reshape(2, 3, 4)  # of both ranks
    assert own.tolist() == [first.tolist(), second.tolist(), third.tolist()]
    expected = second, third, rows[order.images(1, np.arange(4))]
    assert [set(window) for window in later.tolist()] == [set(window) for window in expected]


def test_a_mixture_is_of_two_images_of_the_global_batch(prepared: PreparedDataset) -> None:
    section = finetune(5)
    every = {part.epoch: part for part in parts_of(section, 0, 1, count=5)}[0]
    assert sorted(every.indices) == list(range(5))
    assert every.partners.tolist() == every.indices[[1, 0, 3, 2, 4]].tolist()  # the odd one is its own
    plain, mixed = images_of(prepared).train[every], images_of(prepared, **MIXUP).train[every]
    assert mixed.fractions is not None
    shares = mixed.fractions[:, None, None, None]
    expected = shares * plain.pixels + (1 - shares) * plain.pixels[[1, 0, 3, 2, 4]]
    assert (mixed.pixels - expected).abs().max() <= 0.501
    assert mixed.partners is not None
    assert mixed.partners.tolist() == plain.values[[1, 0, 3, 2, 4]].tolist()
    assert torch.equal(mixed.values, plain.values)
    other = images_of(prepared, **MIXUP).train[every._replace(positions=every.positions + 5)]
    assert other.fractions is not None
    assert not (other.fractions == mixed.fractions).any()


def test_an_image_is_augmented_anew_in_each_epoch_and_keeps_its_label(prepared: PreparedDataset) -> None:
    training = images_of(prepared).train
    every = np.arange(len(training))

    def asked(epoch: int, places: NDArray[np.int64]) -> Batch:
        return training[BatchSpec(epoch, places, places, places)]

    first, again, second, backwards = asked(0, every), asked(0, every), asked(1, every), asked(0, every[::-1].copy())
    assert first.values.tolist() == read_values("train").tolist()
    assert torch.equal(first.pixels, again.pixels)
    assert not (first.pixels == second.pixels).flatten(1).all(1).any()
    assert torch.equal(backwards.pixels, first.pixels.flip(0))
    assert torch.equal(backwards.values, first.values.flip(0))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_validation_image_is_counted_once(prepared: PreparedDataset, world: int) -> None:
    rows = prepared.rows("validation")
    assert len(rows) % 4
    expected = {
        pixels.numpy().tobytes(): label
        for pixels, label in zip(evaluation_pixels(prepared, rows), read_values("validation").tolist(), strict=True)
    }
    seen: list[tuple[bytes, int]] = []
    for rank in range(world):
        for pixels, labels, *_ in images_of(prepared, rank, world).val_dataloader():
            assert 0 < len(pixels) == len(labels) <= max(1, 4 // world)
            seen += zip((image.numpy().tobytes() for image in pixels), labels.tolist(), strict=True)
    assert len(seen) == len(rows)
    assert dict(seen) == expected


def test_evaluation_sees_the_middle_of_what_is_stored(prepared: PreparedDataset) -> None:
    rows = prepared.rows("validation")[:3]
    stored = np.stack([prepared.pixels(int(row)) for row in rows])
    assert evaluation_pixels(prepared, rows).numpy().tobytes() == stored[:, 2:34, 2:34].tobytes()


@pytest.fixture
def skewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Labels of which one in four images has the rarest."""
    monkeypatch.chdir(tmp_path)
    return write_prepared({"train": 40, "validation": 4, "test": 4}, kind="labels")


SAMPLED: dict[str, Any] = {"sampling": "balanced", **MIXUP, "augment.policy": "randaugment"}


def values_seen(loaders: list[DataLoader[Batch]], epoch: int) -> list[Batch]:
    for loader in loaders:
        assert isinstance(loader.sampler, GlobalBatchSampler)
        loader.sampler.set_epoch(epoch)
    return [Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*loaders, strict=True)]


@pytest.mark.parametrize("changes", [SAMPLED, {**SAMPLED, "sampling": "sqrt", **WINDOWS}], ids=["balanced", "sqrt"])
@pytest.mark.parametrize("world", [2, 4])
def test_sampled_batches_are_the_same_bytes_on_any_number_of_ranks(
    skewed: PreparedDataset, changes: dict[str, Any], world: int
) -> None:
    whole = values_seen([images_of(skewed, **changes).train_dataloader()], 2)
    shared = values_seen([images_of(skewed, rank, world, **changes).train_dataloader() for rank in range(world)], 2)
    assert len(whole) == 10
    for batch, other in zip(whole, shared, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        for name in ("values", "partners", "fractions"):
            torch.testing.assert_close(getattr(batch, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


def test_a_repeated_image_is_augmented_anew_and_its_first_time_is_the_one_without_sampling(
    skewed: PreparedDataset,
) -> None:
    plain, sampled = images_of(skewed).train, images_of(skewed, sampling="balanced").train
    places = np.arange(40)
    images, repeats = sampled._drawn(1, places)  # noqa: SLF001  (which images these are)
    assert repeats.max() > 0
    assert len(np.unique(images)) < 40
    once = plain[BatchSpec(1, images, images, images)]
    batch = sampled[BatchSpec(1, places, places, places)]
    torch.testing.assert_close(batch.values, once.values, equal_nan=True)
    same = (batch.pixels == once.pixels).flatten(1).all(1).numpy()
    assert same[repeats == 0].all()
    assert not same[repeats > 0].any()
    counts = np.bincount(images, minlength=40)
    rarest = skewed.target.rarities(read_values("train"))
    assert counts[rarest == rarest.max()].mean() > 1 > counts[rarest == rarest.min()].mean()
