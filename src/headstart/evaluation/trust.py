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
from scipy.special import softmax

from headstart.core.io import write_json
from headstart.core.paths import TRUST
from headstart.evaluation.bootstrap import exact_interval
from headstart.evaluation.metrics import ECE_BINS, confidence_bins, contributions, figures
from headstart.evaluation.ood import ood_thresholds, write_ood_reference
from headstart.evaluation.predictions import ModelPredictions
from headstart.inference.scores import METHODS, nonconformity, threshold
from headstart.probe.temperature import fit_temperature

EXPORTABLE = ("probe", "finetune")
COVERAGE_LEVELS = (0.9, 0.95)

Logits = Mapping[str, NDArray[np.float32]]
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


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> dict[str, Any]:
    """Compare confidence, the probability of the predicted class at a temperature, with accuracy, bin by bin.

    Returns:
        ``nll`` and ``ece`` as in ``metrics.figures``; ``bins``, those with images: ``low``, ``high``, ``pictures`` (how
        many), mean ``confidence``, ``accuracy``.
    """
    scaled = logits.astype(np.float64) / temperature
    overall = figures(contributions(scaled, labels, 1).sum(axis=0)[None], 1)
    confidence, correct = softmax(scaled, axis=1).max(1), scaled.argmax(1) == labels
    bins = confidence_bins(confidence)
    members = {i: bins == i for i in np.unique(bins).tolist()}
    return {
        "nll": round(float(overall["nll"][0]), 6),
        "ece": round(float(overall["ece"][0]), 6),
        "bins": [
            {
                "low": round(i / ECE_BINS, 4),
                "high": round((i + 1) / ECE_BINS, 4),
                "pictures": int(mask.sum()),
                "confidence": round(float(confidence[mask].mean()), 6),
                "accuracy": round(float(correct[mask].mean()), 6),
            }
            for i, mask in members.items()
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
        scores = {split: nonconformity(logits[split], method) for split in ("validation", "test")}
        label_scores = scores["validation"][np.arange(len(labels["validation"])), labels["validation"]]
        for level in COVERAGE_LEVELS:
            limit = threshold(label_scores, level)
            entry = {"method": method, "level": level, "threshold": limit if math.isfinite(limit) else None}
            entries.append(entry | _measure(scores["test"] <= limit, labels["test"], classes))
    return entries


def _measure(sets: NDArray[np.bool_], labels: NDArray[np.int64], classes: list[str]) -> dict[str, Any]:
    """Return the figures of prediction sets, bool (n, classes)."""
    sizes, held = sets.sum(1), sets[np.arange(len(labels)), labels]
    by_size = np.bincount(sizes)
    return {
        "coverage": round(float(held.mean()), 6),
        "coverage_interval": exact_interval(int(held.sum()), len(held)),
        "mean_size": round(float(sizes.mean()), 4),
        "empty": round(float((sizes == 0).mean()), 6),
        "sizes": {str(size): int(by_size[size]) for size in np.flatnonzero(by_size)},
        "per_class": [
            {
                "class": name,
                "pictures": int(members.sum()),
                "coverage": round(float(held[members].mean()), 6) if members.any() else None,
                "mean_size": round(float(sizes[members].mean()), 4) if members.any() else None,
            }
            for name, members in ((name, labels == i) for i, name in enumerate(classes))
        ],
    }
