"""A model's weights on disk: in timm's ``local-dir`` format, or as a training left them."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

from headstart.core.errors import UserError, first_line
from headstart.core.paths import MODEL_CONFIG, MODEL_WEIGHTS
from headstart.data.dataset import PreparedDataset

Weights = Mapping[str, Tensor]
OF_MODULE = "model."
"""What the names of a model's weights begin with in the state of the LightningModule that trains it."""
LISTED = 5


def save_timm(model: nn.Module, weights: Weights, prepared: PreparedDataset, folder: Path) -> None:
    """Write the model with these weights as ``timm.create_model("local-dir:folder", pretrained=True)`` loads it."""
    config = {
        "label_names": prepared.classes,
        # A source with as many classes would leave its own names here.
        "pretrained_cfg": {"label_names": prepared.classes, "label_descriptions": None},
    }
    model.load_state_dict(weights)
    model = model.to(memory_format=torch.contiguous_format)  # safetensors takes no other
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True, data_config=prepared.input)
    # safetensors lets nobody else read what it writes.
    (folder / MODEL_WEIGHTS).chmod(stat.S_IMODE((folder / MODEL_CONFIG).stat().st_mode))


def load_timm(folder: Path) -> nn.Module:
    """Load a folder in timm's ``local-dir`` format, for evaluation, on the CPU."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def weights_of_module(state: Weights) -> Weights:
    """Take the backbone's and head's weights out of the LightningModule's."""
    return {name.removeprefix(OF_MODULE): value for name, value in state.items() if name.startswith(OF_MODULE)}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what a training left into a model: a Lightning checkpoint, or a state dict as torch or safetensors save it.

    Raises:
        UserError: it can't be read without running what it holds, or its weights are not the model's.
    """
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError, LookupError) as error:
        raise UserError(f"{path} can't be read: {first_line(error)}") from error
    except Exception as error:  # torch's unpickler has an error of its own for what it refuses
        raise UserError(f"{path} is no checkpoint of tensors and plain values: {first_line(error)}") from error
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no state dict: no tensors by name, nor below `state_dict`")
    if any(name.startswith(OF_MODULE) for name in found):
        found = weights_of_module(found)
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - found.keys()]
    wrong += [f"{name} is not the model's" for name in found.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own.keys() & found.keys()
        if own[name].shape != found[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:LISTED])
        raise UserError(
            f"{path} has other weights than the backbone of params.yaml with the classes of data/prepared "
            f"({len(wrong)} differ): {listed}"
        )
    model.load_state_dict(found)
