"""Batches that a memory is too small for, and parts that are too small for BatchNorm.

A GPU's end of memory and a CPU's free memory are invented; the rest is real.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor, nn

from headstart.core.errors import UserError
from headstart.distributed import memory
from headstart.distributed.process_group import ProcessGroup
from headstart.targets.classes import Classes
from headstart.training.batch_size import (
    SLACK,
    Room,
    accumulation_on_cpu,
    check_smallest_part,
    fitting_accumulation,
    room_for_images,
)
from headstart.training.phases import TrainingPlan, make_plan
from helpers.images import INPUT, params


class SmallMemory(nn.Module):
    """A model with BatchNorm that runs out of memory above so many images."""

    def __init__(self, most: int, batch_size: int) -> None:
        super().__init__()
        self.most, self.seen, self.plan = most, list[int](), SimpleNamespace(batch_size=batch_size)
        self.device, self.image_size, self.channels = torch.device("cpu"), (4, 4), 3
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3, momentum=0.5))
        self.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.layers(pixels.float() + torch.arange(len(pixels)).view(-1, 1, 1, 1))
        return logits


@pytest.mark.parametrize(
    ("most", "batch_size", "world", "parts", "seen"),
    [
        (64, 64, 1, 1, [64]),
        (20, 64, 1, 4, [64, 32, 16]),
        (20, 50, 2, 2, [25, 13]),
        (2, 7, 1, 4, [7, 4, 2]),
        (2, 10, 4, 2, [3, 2]),  # each rank has two images at least, and so two parts at most
    ],
)
def test_parts_are_doubled_until_one_fits(most: int, batch_size: int, world: int, parts: int, seen: list[int]) -> None:
    module: Any = SmallMemory(most, batch_size)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert fitting_accumulation(module, world, 1, bool) == parts
    assert module.seen == seen
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_every_rank_goes_on_until_it_fits_everywhere() -> None:
    module: Any = SmallMemory(64, 64)
    elsewhere = iter([False, False, True])
    assert fitting_accumulation(module, 1, 1, lambda here: here and next(elsewhere)) == 4
    assert module.seen == [64, 32, 16]


def test_an_image_that_does_not_fit_is_an_error() -> None:
    module: Any = SmallMemory(0, 5)
    with pytest.raises(UserError, match=r"too small for a single image.*image_size"):
        fitting_accumulation(module, 1, 1, bool)
    assert module.seen[-1] == 1


def test_training_batch_norm_gets_no_parts_of_one_image() -> None:
    module: Any = SmallMemory(1, 7)
    with pytest.raises(UserError, match="too small for 3 images, of which training BatchNorm needs 2"):
        fitting_accumulation(module, 1, 1, bool, smallest=2)
    assert module.seen == [7, 4, 3]  # three parts of 3, 2 and 2


def plan_of(model: nn.Module, batch_size: int, accumulate: int = 1, batch_norm: str = "train") -> TrainingPlan:
    changes = {"batch_size": batch_size, "accumulate": accumulate, "batch_norm": batch_norm}
    finetune = params({f"finetune.{name}": value for name, value in changes.items()}).finetune
    target = Classes([*"abc"])
    return make_plan(model, finetune, target=target, train_images=1000, train_bytes=1, pretrained=False)


def with_free(images: float, per_image: float, weights: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave memory for so many images beside the copies of the weights."""
    monkeypatch.setattr(memory, "free_memory", lambda processes: (weights + images * per_image) / processes)


@pytest.mark.parametrize(
    ("name", "channels", "bf16"),
    [("test_resnet", 3, False), ("test_resnet", 5, False), ("test_vit", 3, False), ("test_vit", 3, True)],
)
def test_on_a_cpu_the_images_that_fit_are_estimated_from_one(
    name: str, channels: int, *, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(name, num_classes=4, in_chans=channels)
    config = {**INPUT, "input_size": [channels, 160, 160], "mean": [0.5] * channels, "std": [0.25] * channels}
    plan, before = plan_of(model, 64), {key: value.clone() for key, value in model.state_dict().items()}
    room = room_for_images(model, config, plan, ProcessGroup(), bf16=bf16)
    assert room.per_image > SLACK * 3 * 160 * 160 * (1 if bf16 else 5)
    # In bf16 with autocast's copies, of half the size, which many images share.
    copies = 1 + plan.finetune.copies_of_weights + bf16 / 2
    weights = copies * sum(each.nbytes for each in model.parameters())
    with_free(20.5, room.per_image, weights, monkeypatch)
    assert room_for_images(model, config, plan, ProcessGroup(), bf16=bf16).images == 20
    with_free(-1, room.per_image, weights, monkeypatch)
    assert room_for_images(model, config, plan, ProcessGroup(), bf16=bf16).images == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    elsewhere = ProcessGroup(device=torch.device("meta"))
    assert accumulation_on_cpu(room_for_images(model, config, plan, elsewhere), plan, 1, trains_statistics=True) == 1


def test_bf16_copies_of_the_weights_are_not_counted_for_each_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4096), nn.Linear(4096, 4))
    plan, config = cast("TrainingPlan", SimpleNamespace(finetune=params().finetune)), {**INPUT, "input_size": [3, 4, 4]}
    single, half = (room_for_images(model, config, plan, ProcessGroup(), bf16=bf16) for bf16 in (False, True))
    assert 0 < half.per_image < single.per_image


@pytest.mark.parametrize(
    ("fit", "batch_size", "accumulate", "world", "needed"),
    [
        (64, 64, 1, 1, 1),
        (63, 64, 1, 1, 2),
        (20, 64, 1, 1, 4),
        (20, 64, 2, 1, 4),
        (20, 64, 8, 1, 8),
        (16, 64, 1, 4, 1),
        (15, 64, 1, 4, 2),
        (1, 7, 1, 1, 7),
    ],
)
def test_a_batch_is_split_as_a_cpu_s_memory_needs_it(  # noqa: PLR0917
    fit: int, batch_size: int, accumulate: int, world: int, needed: int, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(fit, fit * 1e8, 1e8)
    plan: Any = SimpleNamespace(finetune=SimpleNamespace(accumulate=accumulate), batch_size=batch_size)
    assert accumulation_on_cpu(room, plan, world, trains_statistics=False) == needed
    assert ("finetune.batch_size: " in caplog.text) == (needed > accumulate)
    assert -(-batch_size // (world * needed)) <= fit


def test_with_training_batch_norm_it_is_refused_with_what_fits() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    room = Room(20, 2e9, 1e8)
    with pytest.raises(UserError) as error:
        accumulation_on_cpu(room, plan_of(model, 64), 2, trains_statistics=True)
    assert str(error.value).startswith("finetune.batch_size: 32 images at a time take about 3.2 GB")
    assert "2 GB of memory are free" in str(error.value)
    assert "set it to 40 or less" in str(error.value)
    assert "finetune.accumulate to 2" in str(error.value)
    assert accumulation_on_cpu(room, plan_of(model, 40), 2, trains_statistics=True) == 1
    assert accumulation_on_cpu(room, plan_of(model, 64, accumulate=2), 2, trains_statistics=True) == 2
    with pytest.raises(UserError, match=r"too little for one: free some, or choose a smaller backbone\.image_size"):
        accumulation_on_cpu(Room(0, 1e7, 1e8), plan_of(model, 64), 2, trains_statistics=False)


SQUEEZED = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))
SPATIAL = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
NORMS = {"map": SPATIAL, "pooled": SQUEEZED, "none": nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))}


@pytest.mark.parametrize(
    ("norm", "batch_size", "accumulate", "world", "message"),
    [
        ("map", 1, 1, 1, ""),  # one image has many values a channel
        ("none", 1, 1, 1, ""),
        ("pooled", 1, 1, 1, "2 images or more at a time, and 1 leaves it one: use 2 or more"),
        ("pooled", 2, 1, 1, ""),
        ("pooled", 2, 2, 1, "2 in 2 parts on 1 processes leaves it one: use 4 or more"),
        ("pooled", 2, 1, 2, "2 in 1 parts on 2 processes leaves it one: use 4 or more"),
        ("pooled", 7, 4, 1, "use 8 or more"),  # 2, 2, 2 and 1
        ("pooled", 8, 4, 1, ""),
        ("pooled", 7, 2, 2, "use 8 or more"),  # 2 and 2, 2 and 1
    ],
)
def test_batch_norm_of_one_value_a_channel_is_refused(
    norm: str, batch_size: int, accumulate: int, world: int, message: str
) -> None:
    model = NORMS[norm]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan: Any = SimpleNamespace(finetune=SimpleNamespace(accumulate=accumulate), batch_size=batch_size)
    config = {"input_size": [3, 64, 64]}
    check_smallest_part(model, config, plan, world, trains_statistics=False)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_smallest_part(model, config, plan, world, trains_statistics=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
