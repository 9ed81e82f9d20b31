"""The names on disk of what the probe's head is compared with, each with its reader and its writer.

Beside ``artifacts``, which has the head itself: the classifier that a backbone came with, in ``data/features``, and
what each baseline says of the images that nothing was fitted to, in ``models/baselines``. Probabilities are kept and
not fitted estimators: those could only be pickled, and a pickle runs code when it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import atomic_write, existing, read_json, write_json
from headstart.core.paths import FEATURES, HEADS, HEADS_INFO, PRETRAINED_CLASSES, PRETRAINED_HEAD, PROBE


@dataclass(frozen=True)
class Head:
    """A linear head: ``weight`` float32 (classes, width), ``bias`` float32 (classes,), and the λ of its penalty."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    l2: float

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return X·Wᵀ + b, float32 (n, classes)."""
        return np.asarray(features @ self.weight.T + self.bias, np.float32)


def write_heads(path: Sequence[Head], chosen: int) -> None:
    """Write the heads along the probe's path of λ, and which of them was chosen."""
    from safetensors.numpy import save_file  # noqa: PLC0415  (a door that only reads JSON shall not need it)

    tensors = {name: np.stack([getattr(head, name) for head in path]) for name in ("weight", "bias")}
    with atomic_write(PROBE) as aside:
        aside.mkdir()
        save_file(tensors, aside / HEADS.name)
        write_json(aside / HEADS_INFO.name, {"l2": [head.l2 for head in path], "chosen": chosen})


def read_head(least_l2: float = 0.0) -> Head:
    """Read the probe's chosen head, or if its λ is below ``least_l2`` the one whose λ is nearest to that."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    about = read_json(HEADS_INFO)
    tensors = load_file(existing(HEADS))
    i = about["chosen"]
    if about["l2"][i] < least_l2:
        i = int(np.abs(np.log(about["l2"]) - np.log(least_l2)).argmin())
    return Head(tensors["weight"][i], tensors["bias"][i], about["l2"][i])


@dataclass(frozen=True)
class PretrainedHead:
    """The linear classifier of the classes that a backbone was pretrained on; it reads the cached features.

    Attributes:
        weight: float32 (classes, width).
        bias: float32 (classes,).
        names: of each class, such as ImageNet's ``n01440764``; empty where they are unknown.
        descriptions: of each class, such as ``tench, Tinca tinca``; empty where they are unknown.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    names: list[str]
    descriptions: list[str]


def write_pretrained_head(own: PretrainedHead) -> None:
    """Keep a backbone's classifier beside the features, which ``write_features`` wrote before."""
    from safetensors.numpy import save_file  # noqa: PLC0415  (a door that only reads JSON shall not need it)

    with atomic_write(PRETRAINED_HEAD) as aside:
        save_file({"weight": own.weight, "bias": own.bias}, aside)
    write_json(PRETRAINED_CLASSES, {"names": own.names, "descriptions": own.descriptions})


def read_pretrained_head() -> PretrainedHead | None:
    """Read what ``write_pretrained_head`` wrote; None where the backbone came without a classifier."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    existing(FEATURES)
    if not PRETRAINED_CLASSES.exists():
        return None
    tensors, classes = load_file(existing(PRETRAINED_HEAD)), read_json(PRETRAINED_CLASSES)
    return PretrainedHead(tensors["weight"], tensors["bias"], classes["names"], classes["descriptions"])
