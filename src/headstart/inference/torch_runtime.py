"""A bundle's weights in timm's own model, where torch is installed: for GPUs without onnxruntime-gpu, or to compare."""

import re
import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError, requirement
from headstart.core.paths import MODEL_CONFIG, MODEL_WEIGHTS
from headstart.inference.bundle import Bundle
from headstart.inference.onnx_runtime import InferenceFn

# These arguments of timm.create_model load other weights than the bundle's, from anywhere.
WEIGHT_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
MAX_ARGUMENT = 16384


def open_torch(bundle: Bundle, device: str) -> InferenceFn:
    """Build the architecture that ``config.json`` names and load the bundle's weights into it, on ``cpu`` or ``cuda``.

    Raises UserError where torch is not installed or has no such device, or architecture and weights do not fit.
    """
    path = bundle.folder / MODEL_CONFIG
    if not re.fullmatch(r"[a-z0-9_]+", bundle.config.architecture):  # no scheme, no path, no hub
        raise UserError(f"{path}: architecture is no name of timm's")
    for name, value in bundle.config.model_args.items():
        if name in WEIGHT_ARGUMENTS or not _is_plain(value):
            raise UserError(f"{path}: model_args.{ascii(name)[1:-1]} is no argument that an exported model has")
    try:
        import timm  # noqa: PLC0415  (predict's base install has no torch)
        import torch  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        from headstart.models.backbone import WithFeatures  # noqa: PLC0415
    except ImportError as error:
        needed = shlex.quote(requirement("train"))
        raise UserError(f"{error}: for torch or a GPU, `pip install {needed}` (or onnxruntime-gpu)") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU that it can use; leave --device away")
    weights = load_file(bundle.path(MODEL_WEIGHTS))
    arguments = bundle.config.model_args | {"num_classes": bundle.config.target.outputs}
    try:
        model = timm.create_model(bundle.config.architecture, pretrained=False, **arguments)
        model.load_state_dict(weights)
    except Exception as error:  # noqa: BLE001  (each architecture raises what it likes)
        raise UserError(f"{path}: timm can't build this model with {MODEL_WEIGHTS}: {str(error)[:300]}") from None
    with_features = WithFeatures(model).eval().to(device)

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            logits, features = with_features(torch.from_numpy(inputs).to(device))
        return logits.cpu().numpy(), features.cpu().numpy()

    return run


def _is_plain(value: Any) -> bool:
    """Return whether an argument is a number up to ``MAX_ARGUMENT``, a short text, or a list of such."""
    if isinstance(value, list):
        return len(value) <= 100 and all(_is_plain(each) for each in value)
    if isinstance(value, int | float):
        return abs(value) <= MAX_ARGUMENT
    return value is None or (isinstance(value, str) and len(value) <= 100)
