"""Linear heads on disk: the probe's in ``models/probe``, and the one that a backbone came with in ``data/features``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from headstart.core.errors import UserError
from headstart.core.io import atomic_write, existing, read_json, write_json
from headstart.core.paths import FEATURES, HEADS, HEADS_INFO, PRETRAINED_CLASSES, PRETRAINED_HEAD, PROBE


@dataclass(frozen=True)
class Head:
    """A linear head: weight (outputs, width), bias (outputs,), and the λ that it was fitted with."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    l2: float

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return X·Wᵀ + b, float32 (n, outputs)."""
        return np.asarray(features @ self.weight.T + self.bias, np.float32)


def write_heads(path: Sequence[Head], chosen: int, residual_quantiles: list[list[float]] | None = None) -> None:
    """Write the heads along the probe's path of λ, the index of the chosen one, and its residuals' quantiles."""
    tensors = {name: np.stack([getattr(head, name) for head in path]) for name in ("weight", "bias")}
    with atomic_write(PROBE) as folder:
        folder.mkdir()
        save_file(tensors, folder / HEADS.name)
        info: dict[str, Any] = {"l2": [head.l2 for head in path], "chosen": chosen}
        if residual_quantiles is not None:
            info["residual_quantiles"] = residual_quantiles
        write_json(folder / HEADS_INFO.name, info)


def read_head(least_l2: float = 0.0, outputs: int | None = None) -> Head:
    """Read the probe's chosen head; if its λ is below ``least_l2``, the head whose λ is nearest to ``least_l2``.

    Where ``outputs`` are several quantiles of each number, and the probe's but one, its rows are repeated, with biases
    moved by the quantiles of its residuals on validation.

    Raises:
        UserError: the probe has no head, or none for so many outputs.
    """
    info = read_json(HEADS_INFO)
    tensors = load_file(existing(HEADS))
    i = info["chosen"]
    if info["l2"][i] < least_l2:
        i = int(np.abs(np.log(info["l2"]) - np.log(least_l2)).argmin())
    weight, bias = tensors["weight"][i], tensors["bias"][i]
    if outputs not in {None, len(bias)}:
        quantiles = np.array(info.get("residual_quantiles", []), np.float32)  # (numbers, quantiles)
        if len(quantiles) != len(bias) or quantiles.size != outputs:
            raise UserError(
                f"{HEADS_INFO} has no head for {outputs} outputs, but one for {len(bias)}: run `dvc repro -f probe`"
            )
        weight = np.repeat(weight, quantiles.shape[1], axis=0)
        bias = (bias[:, None] + quantiles).ravel()
    return Head(weight, bias, info["l2"][i])


@dataclass(frozen=True)
class PretrainedHead:
    """The linear head of the classes that a backbone was pretrained on; its inputs are the cached features.

    The classes' ``names`` are such as ImageNet's ``n01440764``, the ``descriptions`` such as ``tench, Tinca tinca``;
    empty if unknown.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    names: list[str]
    descriptions: list[str]


def write_pretrained_head(head: PretrainedHead) -> None:
    """Write a backbone's own head into data/features, which ``write_features`` has created."""
    with atomic_write(PRETRAINED_HEAD) as temporary:
        save_file({"weight": head.weight, "bias": head.bias}, temporary)
    write_json(PRETRAINED_CLASSES, {"names": head.names, "descriptions": head.descriptions})


def read_pretrained_head() -> PretrainedHead | None:
    """Read the backbone's own head; None if it came without one."""
    existing(FEATURES)
    if not PRETRAINED_CLASSES.exists():
        return None
    tensors, classes = load_file(existing(PRETRAINED_HEAD)), read_json(PRETRAINED_CLASSES)
    return PretrainedHead(tensors["weight"], tensors["bias"], classes["names"], classes["descriptions"])
