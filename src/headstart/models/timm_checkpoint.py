"""Model weights on disk: in timm's ``local-dir`` format, or as a checkpoint of a training."""

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
from headstart.core.io import read_json
from headstart.core.paths import MODEL_CONFIG, MODEL_WEIGHTS
from headstart.data.dataset import PreparedDataset
from headstart.targets.kinds import make_target
from headstart.targets.target import Target

Weights = Mapping[str, Tensor]
MODULE_PREFIX = "model."  # of the model's weights in the state dict of the LightningModule that trains it
MOST_LISTED = 5
TARGET = "headstart_target"
"""The key of a model's ``config.json`` that has the target of its outputs."""


def save_timm(
    model: nn.Module, weights: Weights, prepared: PreparedDataset, folder: Path, target: Target | None = None
) -> None:
    """Write a model with the given weights as ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it.

    ``target`` is that of its outputs, which ``read_target`` reads again; None: that of the prepared images.
    """
    target = target or prepared.target
    # Without them pretrained_cfg would keep its own label names if the number of classes is the same.
    labels = {"label_names": [*target.names], "label_descriptions": None}
    config = {"label_names": [*target.names], TARGET: {"kind": target.kind, "spec": target.spec()}}
    config["pretrained_cfg"] = labels
    model.load_state_dict(weights)
    model = model.to(memory_format=torch.contiguous_format)  # safetensors accepts no other
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True, data_config=prepared.input)
    # safetensors writes files that only their owner can read.
    (folder / MODEL_WEIGHTS).chmod(stat.S_IMODE((folder / MODEL_CONFIG).stat().st_mode))


def read_target(folder: Path) -> Target:
    """Return the target of the outputs of a model that ``save_timm`` wrote."""
    config = read_json(folder / MODEL_CONFIG)
    about = config[TARGET]
    return make_target(about["kind"], config["label_names"], about["spec"])


def load_timm(folder: Path) -> nn.Module:
    """Load a folder in timm's ``local-dir`` format, for evaluation, on the CPU."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def weights_of_module(state: Weights) -> Weights:
    """Return the model's weights from the state dict of its LightningModule."""
    return {name.removeprefix(MODULE_PREFIX): value for name, value in state.items() if name.startswith(MODULE_PREFIX)}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model: one of Lightning, or a state dict saved by torch or safetensors.

    Raises UserError if reading it would run code that it contains, or its weights don't match the model.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, LookupError) as error:
        raise UserError(f"{path} can't be read: {first_line(error)}") from error
    except Exception as error:  # torch's unpickler raises an error of its own for code that it refuses to run
        raise UserError(f"{path} is no checkpoint of tensors and plain values: {first_line(error)}") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict: no tensors by name, nor below `state_dict`")
    if any(name.startswith(MODULE_PREFIX) for name in weights):
        weights = weights_of_module(weights)
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is not the model's" for name in weights.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if expected[name].shape != weights[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:MOST_LISTED])
        raise UserError(
            f"{path} has other weights than the backbone of params.yaml with the classes of data/prepared "
            f"({len(wrong)} differ): {listed}"
        )
    model.load_state_dict(weights)
