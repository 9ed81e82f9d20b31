"""Out-of-distribution (ood) detection: thresholds on the distance to training images, and models/reference on disk.

The distance is that of ``inference.scores.distances``: 1 - cosine to the tenth nearest training image's features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import atomic_write, existing, read_json, write_json
from headstart.core.paths import OOD_REFERENCE
from headstart.inference.scores import NEIGHBOUR
from headstart.targets.conformal import threshold

MAX_REFERENCE_IMAGES = 1000
"""Training images whose features are kept, at most."""
OOD_LEVELS = (0.95, 0.99)
"""Fractions of images like those of validation that are within the thresholds."""


def ood_thresholds(ood_distances: Mapping[str, NDArray[np.float32]], reference_images: int) -> dict[str, Any]:
    """Compute thresholds from validation's distances, and the fraction of test images beyond each.

    The distances are float32 (n,) by split, to as many training images as ``reference_images``.
    """
    validation = ood_distances["validation"].astype(np.float64)
    limits = {str(level): threshold(validation, level) for level in OOD_LEVELS}
    thresholds = {level: round(limit, 6) for level, limit in limits.items() if np.isfinite(limit)}
    neighbour = min(NEIGHBOUR, reference_images)
    return {
        "score": f"1 - cosine to the {neighbour}th nearest of {reference_images} training images",
        "neighbour": neighbour,
        "references": reference_images,
        "thresholds": thresholds,
        "flagged": {
            level: round(float((ood_distances["test"] > limit).mean()), 6) for level, limit in thresholds.items()
        },
    }


def write_ood_reference(models: Mapping[str, tuple[dict[str, Any], NDArray[np.float32]]]) -> None:
    """Write what an export needs of each model: its calibration, and reference features, float32 (m, width)."""
    with atomic_write(OOD_REFERENCE) as partial:
        partial.mkdir()
        for name, (calibration, features) in models.items():
            write_json(partial / f"{name}.json", calibration)
            np.save(partial / f"{name}.npy", features)


def read_ood_reference(model: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read what ``write_ood_reference`` wrote for a model; raises UserError where it is missing."""
    return read_json(OOD_REFERENCE / f"{model}.json"), np.load(existing(OOD_REFERENCE / f"{model}.npy"))
