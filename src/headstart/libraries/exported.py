"""The model as one traced program, torch.export's, from which its other formats are written."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from headstart.libraries.backbone import classifier, features_of

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pixels, float32 (batch, 3, height, width), to logits (batch, classes) and features (batch, width)."""


class WithFeatures(nn.Module):
    """A timm model that gives its features beside its logits: whoever predicts compares them with those of training."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (batch, classes) and what the classifier reads, (batch, width)."""
        features = features_of(self.model, pixels)
        return classifier(self.model)(features), features


def traced(model: nn.Module, input_size: tuple[int, int, int]) -> ExportedProgram:
    """Trace a timm model on the CPU, as it is (that is in evaluation mode), with a free batch size."""
    # Two pictures: a trace of one would fix the batch size at 1.
    pixels = torch.zeros(2, *input_size)
    return torch.export.export(WithFeatures(model), (pixels,), dynamic_shapes=({0: Dim("batch")},))


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a traced program as torch.export's ``.pt2``."""
    torch.export.save(program, path)


def load_program(path: Path) -> Function:
    """Load what ``write_program`` wrote, to run on the CPU."""
    with warnings.catch_warnings():  # torch 2.11 warns of how it reads the file itself
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        function: Function = torch.export.load(path).module()
    return function
