"""Whether a picture is like those that a model was trained on: its distance to their features (Sun et al. 2022).

The energy of the logits (Liu et al. 2020) needs no reference, but took most digits and noise for Imagenette's classes;
``benchmarks/novelty.py`` compares them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.libraries.nonconformity import threshold

REFERENCES = 1000
"""Training pictures whose features are kept, at most."""
NEIGHBOUR = 10
USUAL = (0.95, 0.99)
"""Shares of pictures like those of validation that a threshold lets pass."""


def distances(features: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give 1 − cosine to the tenth nearest of the reference, float32 (n,), in [0, 2].

    Args:
        features: float32 (n, width).
        reference: float32 (m, width), of training pictures, m at least 1; with fewer than ten it is the farthest.
    """
    first, second = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (features, reference)
    )
    last = min(NEIGHBOUR, len(reference)) - 1
    return np.asarray(np.partition(1 - first @ second.T, last, axis=1)[:, last], np.float32)


def novelty(distance: Mapping[str, NDArray[np.float32]], references: int) -> dict[str, Any]:
    """Take thresholds from validation's distances and count the test pictures beyond them; by split, float32 (n,)."""
    thresholds = {share: threshold(distance["validation"].astype(np.float64), share) for share in USUAL}
    found = {str(share): round(limit, 6) for share, limit in thresholds.items() if np.isfinite(limit)}
    return {
        "score": f"1 - cosine to the {min(NEIGHBOUR, references)}th nearest of {references} training pictures",
        "neighbour": min(NEIGHBOUR, references),
        "references": references,
        "thresholds": found,
        "flagged": {share: round(float((distance["test"] > limit).mean()), 6) for share, limit in found.items()},
    }
