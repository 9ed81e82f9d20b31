"""The names on disk of what tells how sure a model is, and whether an image is unlike those that it was trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import atomic_write, existing, read_json, write_json
from headstart.core.paths import OOD_REFERENCE
from headstart.inference.scores import NEIGHBOUR, threshold


def write_ood_reference(models: Mapping[str, tuple[dict[str, Any], NDArray[np.float32]]]) -> None:
    """Write, by model, what validation taught of it, and its features of some training images, float32 (m, width)."""
    with atomic_write(OOD_REFERENCE) as aside:
        aside.mkdir()
        for name, (told, features) in models.items():
            write_json(aside / f"{name}.json", told)
            np.save(aside / f"{name}.npy", features)


def read_ood_reference(model: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read what ``write_ood_reference`` wrote of a model; raises UserError where it is missing."""
    return read_json(OOD_REFERENCE / f"{model}.json"), np.load(existing(OOD_REFERENCE / f"{model}.npy"))


REFERENCES = 1000
"""Training images whose features are kept, at most."""
USUAL = (0.95, 0.99)
"""Shares of images like those of validation that a threshold lets pass."""


def ood_thresholds(distance: Mapping[str, NDArray[np.float32]], references: int) -> dict[str, Any]:
    """Take thresholds from validation's distances and count the test images beyond them; by split, float32 (n,)."""
    thresholds = {share: threshold(distance["validation"].astype(np.float64), share) for share in USUAL}
    found = {str(share): round(limit, 6) for share, limit in thresholds.items() if np.isfinite(limit)}
    return {
        "score": f"1 - cosine to the {min(NEIGHBOUR, references)}th nearest of {references} training images",
        "neighbour": min(NEIGHBOUR, references),
        "references": references,
        "thresholds": found,
        "flagged": {share: round(float((distance["test"] > limit).mean()), 6) for share, limit in found.items()},
    }
