"""The model as ONNX: written, checked and run."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

ONE_FILE_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the graph itself needs some of it


def write_onnx(model: nn.Module, path: Path, input_size: tuple[int, int, int]) -> None:
    """Write a model in evaluation mode, on the CPU, as ONNX with a free batch size.

    Its input is ``pixels``, float32 (batch, *input_size), normalised; its output is ``logits``, float32 (batch,
    classes). The weights are in the file itself, or beside it as ``<name>.data`` where they exceed what one file holds.

    Raises:
        onnx.checker.ValidationError: what was written is not valid ONNX.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    torch.onnx.export(
        model,
        (torch.zeros(2, *input_size),),  # two pictures: an export from one would fix the batch size at 1
        path,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=weights > ONE_FILE_BYTES,
        verbose=False,
    )
    onnx.checker.check_model(str(path), full_check=True)


def onnx_model(path: Path) -> Callable[[Tensor], Tensor]:
    """Load what ``write_onnx`` wrote, to run on the CPU: float32 (batch, 3, height, width) to (batch, classes)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixels": inputs.contiguous().numpy()})[0])

    return logits
