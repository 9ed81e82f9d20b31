"""A bundle's ONNX file, checked, then loaded into ONNX Runtime; no torch."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headstart.core.errors import UserError, first_line
from headstart.inference.bundle import ONNX_DATA, Bundle
from headstart.inference.onnx_check import check_onnx

InferenceFn = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From pixels, float32 (n, 3, height, width), to logits, float32 (n, outputs), and features, float32 (n, width); many
threads may call it at once."""
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
MEMORY_FRACTION = 0.75
"""Of the machine's memory, for ONNX Runtime: a model that asks for more fails, instead of the machine."""


def cuda_available() -> bool:
    """Return whether this onnxruntime is the one for Nvidia's GPUs (the package onnxruntime-gpu)."""
    return CUDA in onnxruntime.get_available_providers()


def open_session(bundle: Bundle, name: str, *, device: str, threads: int) -> InferenceFn:
    """Load an ONNX file of a bundle on ``cpu``, or on ``cuda`` where ``cuda_available``.

    ``threads`` compute, however many threads call. Raises UserError where the file is not the manifest's, fails
    ``check_onnx``, can't be loaded, or has other inputs or outputs than the bundle's config says.
    """
    path = bundle.path(name)
    check_onnx(path, [bundle.path(ONNX_DATA).name] if ONNX_DATA in bundle.files else [])
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that wait busily take the cores from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Never its own format, which check_onnx can't read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # errors are raised, too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[CUDA, CPU] if device == "cuda" else [CPU])
    except Exception as error:  # noqa: BLE001  (onnxruntime's exceptions have no common base but this)
        raise UserError(f"{path}: ONNX Runtime can't load it: {first_line(error)}") from None
    if device == "cuda" and CUDA not in session.get_providers():
        raise UserError("--device cuda: ONNX Runtime found no GPU that it can use; leave --device away")
    _check_signature(session, bundle, path)

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            logits, features = session.run(["logits", "features"], {"pixels": inputs})
        except Exception as error:  # noqa: BLE001
            raise UserError(f"{path}: ONNX Runtime can't run it: {first_line(error)}") from None
        expected = (len(inputs), bundle.config.target.outputs), (len(inputs), bundle.config.features)
        if (logits.shape, features.shape) != expected:
            raise UserError(f"{path}: its logits and features are {logits.shape} and {features.shape}, not {expected}")
        return logits, features

    return run


@functools.cache
def _limit_memory() -> None:
    """Register one memory arena of limited size for all sessions of this process."""
    limit = int(MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # It grows by the size of each request (1), not by doubling; -1 is ONNX Runtime's default.
    sizes = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    arena = onnxruntime.OrtArenaCfg({"max_mem": limit, "arena_extend_strategy": 1, **sizes})
    onnxruntime.create_and_register_allocator(memory, arena)


def _check_signature(session: onnxruntime.InferenceSession, bundle: Bundle, path: Path) -> None:
    """Raise UserError where inputs or outputs are not those that ``config.json`` promises."""
    config, inputs, outputs = bundle.config, session.get_inputs(), session.get_outputs()
    expected = {
        "logits": (config.target.outputs,),
        "features": (config.features,),
        "pixels": config.input["input_size"],
    }
    for side, tensors, wanted in (("inputs", inputs, ["pixels"]), ("outputs", outputs, ["features", "logits"])):
        names = sorted(each.name for each in tensors)
        if names != wanted:
            raise UserError(f"{path}: its {side} are {', '.join(names)}, not {', '.join(wanted)}")
    for each in (*inputs, *outputs):
        shape = tuple(each.shape[1:]) if each.shape and not isinstance(each.shape[0], int) else "?"
        if (each.type, shape) != ("tensor(float)", expected[each.name]):
            sides = ", ".join(map(str, expected[each.name]))
            raise UserError(
                f"{path}: {each.name} must be float32 of (batch, {sides}) with a free batch, as config.json says, "
                f"but is {each.type} of {shape}"
            )
