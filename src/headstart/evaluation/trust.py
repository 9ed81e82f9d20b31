"""How far a model can be trusted: reports/evaluate/trust.json, and models/reference, which goes into an export.

Calibration is temperature scaling and reliability diagrams (Guo et al. 2017).

Prediction sets hold the labelled class as often as promised by split conformal prediction: a threshold is the quantile
of a score on images that the model was not trained on. Vovk et al. (2005): as long as these and a new image are
exchangeable, their order carrying no information, the new image's score is within the threshold with at least the
wanted probability, on average over all images and not for each class. Choosing λ and the epoch on the same images
weakens this a little; the coverage that results is measured on test.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from headstart.core.blocks import Matrix, row_blocks
from headstart.core.io import write_json
from headstart.core.paths import TRUST
from headstart.evaluation.bootstrap import exact_interval
from headstart.evaluation.ood import ood_thresholds, write_ood_reference
from headstart.evaluation.predictions import ModelPredictions
from headstart.targets.class_figures import ECE_BINS, confidence_bins
from headstart.targets.classes import METHODS, nonconformity
from headstart.targets.conformal import threshold
from headstart.targets.likelihood import fit_temperature

EXPORTABLE = ("probe", "finetune")
COVERAGE_LEVELS = (0.9, 0.95)

Logits = Mapping[str, Matrix]
"""Float32 (n, classes) by split, validation and test."""
Labels = Mapping[str, NDArray[np.int64]]
"""Int64 (n,) by split, validation and test."""


def write_trust(models: Mapping[str, ModelPredictions], labels: Labels, classes: list[str]) -> None:
    """Write every model's calibration, and the prediction sets and ood thresholds of the fine-tuned one.

    Everything is fitted on validation and measured on test. An export states the same of its model, so the temperature,
    the thresholds and the reference features of the models that can be exported are written for it.
    """
    calibrations = {name: calibration(model.logits, labels) for name, model in models.items()}
    references = {name: models[name].reference_features for name in EXPORTABLE}
    sets = {name: conformal(models[name].logits, labels, classes) for name in EXPORTABLE}
    ood = {name: ood_thresholds(models[name].ood_distances, len(references[name])) for name in EXPORTABLE}
    for_export = {
        name: {
            "temperature": calibrations[name]["temperature"],
            "conformal": [{key: each[key] for key in ("method", "level", "threshold")} for each in sets[name]],
            "out_of_distribution": {key: value for key, value in ood[name].items() if key != "flagged"},
        }
        for name in EXPORTABLE
    }
    write_ood_reference({name: (for_export[name], references[name]) for name in EXPORTABLE})
    trust = {"calibration": calibrations, "ece_bins": ECE_BINS}
    write_json(TRUST, trust | {"conformal": sets["finetune"], "out_of_distribution": ood["finetune"]})


def calibration(logits: Logits, labels: Labels) -> dict[str, Any]:
    """Fit the temperature on validation, and measure reliability on test before and after scaling."""
    temperature = fit_temperature(logits["validation"], labels["validation"])
    before, after = (reliability(logits["test"], labels["test"], each) for each in (1.0, temperature))
    return {"temperature": temperature, "before": before, "after": after}


def reliability(logits: Matrix, labels: NDArray[np.int64], temperature: float = 1.0) -> dict[str, Any]:
    """Compare confidence, the probability of the predicted class at a temperature, with accuracy, bin by bin.

    Returns:
        ``nll`` and ``ece`` as in ``metrics.figures``; ``bins``, those with images: ``low``, ``high``, ``pictures`` (how
        many), mean ``confidence``, ``accuracy``.
    """
    nll, sums = 0.0, np.zeros((3, ECE_BINS))
    for rows in row_blocks(logits.shape):
        log_probabilities = log_softmax(logits[rows].astype(np.float64) / temperature, axis=1)
        nll -= log_probabilities[np.arange(len(log_probabilities)), labels[rows]].sum()
        confidence, correct = np.exp(log_probabilities.max(1)), log_probabilities.argmax(1) == labels[rows]
        bins = confidence_bins(confidence)
        sums += [np.bincount(bins, weights, ECE_BINS) for weights in (None, confidence, correct)]
    images, confident, right = sums
    return {
        "nll": round(float(nll / len(labels)), 6),
        "ece": round(float(np.abs(right - confident).sum() / len(labels)), 6),
        "bins": [
            {
                "low": round(i / ECE_BINS, 4),
                "high": round((i + 1) / ECE_BINS, 4),
                "pictures": int(images[i]),
                "confidence": round(float(confident[i] / images[i]), 6),
                "accuracy": round(float(right[i] / images[i]), 6),
            }
            for i in np.flatnonzero(images).tolist()
        ],
    }


def conformal(logits: Logits, labels: Labels, classes: list[str]) -> list[dict[str, Any]]:
    """Fit conformal thresholds on validation, and measure their prediction sets on test, for each method and level.

    Returns:
        For each ``method`` and ``level``: ``threshold``, None where every set holds all classes; ``coverage``, the
        fraction of sets that hold the label, with its exact ``coverage_interval``; ``mean_size`` of the sets; the
        fraction that is ``empty``; ``sizes``, how many sets of each size; and ``per_class``.
    """
    entries = []
    for method in METHODS:
        label_scores = np.empty(len(labels["validation"]))
        for rows in row_blocks(logits["validation"].shape):
            scores = nonconformity(logits["validation"][rows], method)
            label_scores[rows] = scores[np.arange(len(scores)), labels["validation"][rows]]
        limits = [threshold(label_scores, level) for level in COVERAGE_LEVELS]
        measured = _measure(logits["test"], labels["test"], classes, method, limits)
        for level, limit, figures in zip(COVERAGE_LEVELS, limits, measured, strict=True):
            entry = {"method": method, "level": level, "threshold": limit if math.isfinite(limit) else None}
            entries.append(entry | figures)
    return entries


def _measure(
    logits: Matrix, labels: NDArray[np.int64], classes: list[str], method: str, limits: list[float]
) -> list[dict[str, Any]]:
    """Return the figures of the prediction sets of each threshold."""
    by_size = np.zeros((len(limits), len(classes) + 1), np.int64)
    pictures = np.bincount(labels, minlength=len(classes))
    held, sizes = np.zeros((2, len(limits), len(classes)), np.int64)  # of the images of each class, summed
    for rows in row_blocks(logits.shape):
        scores, own = nonconformity(logits[rows], method), labels[rows]
        for i, limit in enumerate(limits):
            sets = scores <= limit
            size = sets.sum(1)
            by_size[i] += np.bincount(size, minlength=len(classes) + 1)
            sizes[i] += np.bincount(own, size, len(classes)).astype(np.int64)
            held[i] += np.bincount(own[sets[np.arange(len(own)), own]], minlength=len(classes))
    n = len(labels)
    return [
        {
            "coverage": round(float(held[i].sum() / n), 6),
            "coverage_interval": exact_interval(int(held[i].sum()), n),
            "mean_size": round(float(sizes[i].sum() / n), 4),
            "empty": round(float(by_size[i, 0] / n), 6),
            "sizes": {str(size): int(by_size[i, size]) for size in np.flatnonzero(by_size[i])},
            "per_class": [
                {
                    "class": name,
                    "pictures": int(images),
                    "coverage": round(float(of_held / images), 6) if images else None,
                    "mean_size": round(float(of_sizes / images), 4) if images else None,
                }
                for name, images, of_held, of_sizes in zip(classes, pictures, held[i], sizes[i], strict=True)
            ],
        }
        for i in range(len(limits))
    ]
