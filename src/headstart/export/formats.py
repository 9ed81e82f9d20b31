"""The formats of an exported model: torch.export's program, and ONNX in 32, 16 and 8 bits, made from it."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from headstart.models.backbone import WithFeatures

ModelFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pixels, float32 (batch, channels, height, width), to logits (batch, classes) and features (batch, width)."""


def traced(model: nn.Module, input_size: tuple[int, int, int]) -> ExportedProgram:
    """Trace a timm model on the CPU, in the mode that it is in, with a free batch size."""
    # Two images: a trace of one would fix the batch size at 1.
    pixels = torch.zeros(2, *input_size)
    return torch.export.export(WithFeatures(model), (pixels,), dynamic_shapes=({0: Dim("batch")},))


def load_program(path: Path) -> ModelFunction:
    """Load a file of ``torch.export.save``, to run on the CPU."""
    with warnings.catch_warnings():  # torch 2.11 warns about its own reading of the file
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        function: ModelFunction = torch.export.load(path).module()
    return function


OUTPUTS = ["logits", "features"]
MAX_WEIGHTS_IN_FILE = 2**31 - 2**24  # protobuf ends at 2 GiB, and the graph needs some of it


def write_onnx(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write a traced program as ONNX with a free batch size.

    The weights are in the file itself, or beside it as ``<name>.data`` where they are too large for one file. The
    metadata are texts by name, for readers of the file alone.
    """
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.11 warns about its own code
        torch.onnx.export(
            program,
            (),
            path,
            input_names=["pixels"],
            output_names=OUTPUTS,
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=weights > MAX_WEIGHTS_IN_FILE,
            verbose=False,
        )
    written = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(written, metadata)
    onnx.save(written, path)
    onnx.checker.check_model(str(path), full_check=True)


def write_fp16(path: Path, target: Path) -> None:
    """Write an ONNX file anew with weights and arithmetic in float16; input and outputs stay float32."""
    model = OnnxModel(onnx.load(path))
    model.convert_float_to_float16(keep_io_types=True)
    model.topological_sort()
    onnx.save(model.model, target)
    onnx.checker.check_model(str(target), full_check=True)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[NDArray[np.float32]]) -> None:
        self._inputs = ({"pixels": pixels} for pixels in batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._inputs, None)


def write_int8(path: Path, target: Path, batches: Iterable[NDArray[np.float32]]) -> None:
    """Write an ONNX file anew with weights and activations in 8 bits, weights by output channel.

    The first and the last layer stay in float32, as is usual: they have few of the weights and cost most of the
    accuracy (Imagenette with the bundled backbone: 99.2 % of the top classes stayed the same, 89.8 % with both in
    8 bits). The range of every activation is measured on ``batches`` of pixels, float32 (n, channels, height, width).
    """
    with TemporaryDirectory() as folder:
        ready = Path(folder) / path.name
        # Symbolic shapes fail on the graphs of torch 2.11, and the result is the same without them.
        quant_pre_process(path, ready, skip_symbolic_shape=True)
        layers = [node.name for node in onnx.load(ready).graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
        ends = [layers[0], layers[-1]]
        quantize_static(ready, target, _Batches(batches), per_channel=True, nodes_to_exclude=ends)
    onnx.checker.check_model(str(target), full_check=True)


def onnx_model(path: Path) -> ModelFunction:
    """Load an ONNX file to run on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = session.run(OUTPUTS, {"pixels": pixels.contiguous().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(features)

    return run
