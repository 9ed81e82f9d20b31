"""Batches that a memory is too small for. Its end is invented, as it would come from a GPU; the rest is real."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart.core.errors import UserError
from headstart.training.batch_size import fitting_accumulation


class SmallMemory(nn.Module):
    """A model with BatchNorm that runs out of memory above so many images."""

    def __init__(self, most: int, batch_size: int) -> None:
        super().__init__()
        self.most, self.seen, self.plan = most, list[int](), SimpleNamespace(batch_size=batch_size)
        self.device, self.image_size = torch.device("cpu"), (4, 4)
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
