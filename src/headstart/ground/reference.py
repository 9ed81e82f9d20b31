"""The names on disk of what tells whether a picture is unlike those that a model was trained on."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.ground.artifacts import existing, replacing

REFERENCE = Path("models/reference")
FEATURES_OF_TRAINING = REFERENCE / "reference.safetensors"


def write_reference(features: NDArray[np.float32]) -> None:
    """Write the fine-tuned model's features of some training pictures, float32 (m, width)."""
    from safetensors.numpy import save_file  # noqa: PLC0415  (as in artifacts)

    with replacing(REFERENCE) as aside:
        aside.mkdir()
        save_file({"features": features}, aside / FEATURES_OF_TRAINING.name)


def read_reference() -> NDArray[np.float32]:
    """Read what ``write_reference`` wrote; raises UserError where it is missing."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    return load_file(existing(FEATURES_OF_TRAINING))["features"]
