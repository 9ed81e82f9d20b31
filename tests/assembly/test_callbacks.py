"""Batches that a memory is too small for. Its end is invented, as it would come from a GPU; the rest is real."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headstart.assembly.callbacks import fitting_parts
from headstart.ground.errors import UserError


class SmallMemory(nn.Module):
    """A model with BatchNorm that runs out of memory above so many pictures."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen, self.device, self.picture_size = most, list[int](), torch.device("cpu"), (4, 4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.BatchNorm1d(3, momentum=0.5))
        self.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.layers(pixels.float() + torch.arange(len(pixels)).view(-1, 1, 1, 1))
        return logits


@pytest.mark.parametrize(
    ("most", "share", "asked", "parts", "seen"),
    [(64, 64, 1, 1, [64]), (20, 64, 1, 4, [64, 32, 16]), (20, 50, 2, 4, [25, 13]), (2, 7, 1, 4, [7, 4, 2])],
)
def test_parts_are_doubled_until_one_fits(most: int, share: int, asked: int, parts: int, seen: list[int]) -> None:
    module: Any = SmallMemory(most)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert fitting_parts(module, share, asked) == parts
    assert module.seen == seen
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_picture_that_does_not_fit_is_an_error() -> None:
    module: Any = SmallMemory(0)
    with pytest.raises(UserError, match=r"too small for a single picture.*image_size"):
        fitting_parts(module, 5, 1)
    assert module.seen[-1] == 1
