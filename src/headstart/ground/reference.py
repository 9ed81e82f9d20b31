"""The names on disk of what tells how sure a model is, and whether a picture is unlike those that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.ground.artifacts import existing, read_json, replacing, write_json

REFERENCE = Path("models/reference")


def write_reference(models: Mapping[str, tuple[dict[str, Any], NDArray[np.float32]]]) -> None:
    """Write, by model, what validation taught of it, and its features of some training pictures, float32 (m, width)."""
    with replacing(REFERENCE) as aside:
        aside.mkdir()
        for name, (told, features) in models.items():
            write_json(aside / f"{name}.json", told)
            np.save(aside / f"{name}.npy", features)


def read_reference(model: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read what ``write_reference`` wrote of a model; raises UserError where it is missing."""
    return read_json(REFERENCE / f"{model}.json"), np.load(existing(REFERENCE / f"{model}.npy"))
