"""The names on disk of what the probe's head is compared with, each with its reader and its writer.

Beside ``artifacts``, which has the head itself: the classifier that a backbone came with, in ``data/features``, and
what each baseline says of the pictures that nothing was fitted to, in ``models/baselines``. Probabilities are kept and
not fitted estimators: those could only be pickled, and a pickle runs code when it is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.ground.artifacts import BASELINES, FEATURES, existing, read_json, replacing, write_json

OWN_CLASSIFIER = FEATURES / "classifier.safetensors"
OWN_CLASSES = FEATURES / "classifier.json"
OUTPUTS = BASELINES / "log_probabilities.safetensors"


@dataclass(frozen=True)
class OwnClassifier:
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


def write_own_classifier(own: OwnClassifier) -> None:
    """Keep a backbone's classifier beside the features, which ``write_features`` wrote before."""
    from safetensors.numpy import save_file  # noqa: PLC0415  (a door that only reads JSON shall not need it)

    with replacing(OWN_CLASSIFIER) as aside:
        save_file({"weight": own.weight, "bias": own.bias}, aside)
    write_json(OWN_CLASSES, {"names": own.names, "descriptions": own.descriptions})


def read_own_classifier() -> OwnClassifier | None:
    """Read what ``write_own_classifier`` wrote; None where the backbone came without a classifier."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    existing(FEATURES)
    if not OWN_CLASSES.exists():
        return None
    tensors, classes = load_file(existing(OWN_CLASSIFIER)), read_json(OWN_CLASSES)
    return OwnClassifier(tensors["weight"], tensors["bias"], classes["names"], classes["descriptions"])


def write_baselines(rows: NDArray[np.int64], log_probabilities: Mapping[str, NDArray[np.float32]]) -> None:
    """Write what each baseline says of the same pictures.

    Args:
        rows: int64 (n,), increasing: which pictures.
        log_probabilities: float32 (n, classes) by the baseline's name.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415

    with replacing(BASELINES) as aside:
        aside.mkdir()
        save_file({"rows": rows, **log_probabilities}, aside / OUTPUTS.name)


def read_baselines(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Read what each baseline says of some of the pictures: float32 (n, classes) by name.

    Args:
        rows: int64 (n,), among those that were written; each is looked up by its number.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415

    outputs = load_file(existing(OUTPUTS))
    written = outputs.pop("rows")
    places = np.searchsorted(written, rows)
    assert np.array_equal(written[places], rows), "the baselines were written for other pictures"
    return {name: values[places] for name, values in outputs.items()}
