"""Whether probabilities can be believed: temperature scaling and reliability diagrams (Guo et al. 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from headstart.evaluation.bootstrap import ECE_BINS, confidence_bins
from headstart.probe.temperature import fit_temperature, negative_log_likelihood


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> dict[str, Any]:
    """Compare confidence, the probability of the chosen class, with how often it is right, bin by bin.

    Args:
        logits: float32 (n, classes).
        labels: int64 (n,).
        temperature: what the logits are divided by first.

    Returns:
        ``nll``; ``ece``, the mean difference of confidence and accuracy in equally wide bins, by their images (Naeini
        et al. 2015); ``bins``, those with images: ``low``, ``high``, ``pictures``, mean ``confidence``, ``accuracy``.
    """
    log_probabilities = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    confidence, right = np.exp(log_probabilities.max(1)), log_probabilities.argmax(1) == labels
    bins = confidence_bins(confidence)
    images, sums, rights = (np.bincount(bins, each, ECE_BINS) for each in (np.ones(len(bins)), confidence, right))
    return {
        "nll": round(negative_log_likelihood(log_probabilities, labels), 6),
        "ece": round(float(np.abs(sums - rights).sum() / len(labels)), 6),
        "bins": [
            {
                "low": round(i / ECE_BINS, 4),
                "high": round((i + 1) / ECE_BINS, 4),
                "pictures": int(images[i]),
                "confidence": round(float(sums[i] / images[i]), 6),
                "accuracy": round(float(rights[i] / images[i]), 6),
            }
            for i in np.flatnonzero(images)
        ],
    }


def calibration(logits: dict[str, NDArray[np.float32]], labels: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Fit the temperature on validation, and judge test before and after.

    Args:
        logits: float32 (n, classes) by split.
        labels: int64 (n,) by split.
    """
    temperature = fit_temperature(logits["validation"], labels["validation"])
    before, after = (reliability(logits["test"], labels["test"], by) for by in (1.0, temperature))
    return {"temperature": temperature, "before": before, "after": after}
