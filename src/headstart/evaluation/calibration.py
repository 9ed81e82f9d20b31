"""How well probabilities are calibrated: temperature scaling and reliability diagrams (Guo et al. 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from headstart.evaluation.metrics import ECE_BINS, confidence_bins, contributions, figures
from headstart.probe.temperature import fit_temperature


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> dict[str, Any]:
    """Compare confidence, the probability of the predicted class, with accuracy, bin by bin.

    Args:
        logits: float32 (n, classes).
        labels: int64 (n,).
        temperature: the logits are divided by it first.

    Returns:
        ``nll`` and ``ece`` as in ``metrics.figures``; ``bins``, those with images: ``low``, ``high``, ``pictures`` (how
        many), mean ``confidence``, ``accuracy``.
    """
    scaled = logits.astype(np.float64) / temperature
    overall = figures(contributions(scaled, labels, 1).sum(axis=0)[None], 1)
    confidence, correct = softmax(scaled, axis=1).max(1), scaled.argmax(1) == labels
    bins = confidence_bins(confidence)
    images, confidences, hits = (
        np.bincount(bins, each, ECE_BINS) for each in (np.ones(len(bins)), confidence, correct)
    )
    return {
        "nll": round(float(overall["nll"][0]), 6),
        "ece": round(float(overall["ece"][0]), 6),
        "bins": [
            {
                "low": round(i / ECE_BINS, 4),
                "high": round((i + 1) / ECE_BINS, 4),
                "pictures": int(images[i]),
                "confidence": round(float(confidences[i] / images[i]), 6),
                "accuracy": round(float(hits[i] / images[i]), 6),
            }
            for i in np.flatnonzero(images)
        ],
    }


def calibration(logits: dict[str, NDArray[np.float32]], labels: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Fit the temperature on validation, and measure reliability on test before and after scaling.

    Args:
        logits: float32 (n, classes) by split.
        labels: int64 (n,) by split.
    """
    temperature = fit_temperature(logits["validation"], labels["validation"])
    before, after = (reliability(logits["test"], labels["test"], each) for each in (1.0, temperature))
    return {"temperature": temperature, "before": before, "after": after}
