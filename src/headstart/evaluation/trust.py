"""How far a model can be trusted: reports/evaluate/trust.json, and models/reference, which goes into an export.

Calibration is temperature scaling and reliability diagrams (Guo et al. 2017).

Prediction sets hold the labelled class, or the like, as often as promised by split conformal prediction: a threshold is
the quantile of a score on images that the model was not trained on. Vovk et al. (2005): as long as these and a new
image are exchangeable, their order carrying no information, the new image's score is within the threshold with at least
the wanted probability, on average over all images and not for each class. Choosing λ and the epoch on the same images
weakens this a little; the coverage that results is measured on test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix
from headstart.core.io import write_json
from headstart.core.paths import TRUST
from headstart.evaluation.bootstrap import Units, exact_interval, interval, replicate_means
from headstart.evaluation.ood import ood_thresholds, write_ood_reference
from headstart.evaluation.predictions import ModelPredictions
from headstart.targets.kinds import describe
from headstart.targets.reliability import ECE_BINS
from headstart.targets.target import Covered, Strata, Target, Values

EXPORTABLE = ("probe", "finetune")

Outputs = Mapping[str, Matrix]
"""Float32 (n, outputs) by split, validation and test."""
SplitValues = Mapping[str, Values]
"""The values of the images by split, validation and test."""


def write_trust(
    models: Mapping[str, ModelPredictions],
    values: SplitValues,
    fitted: Mapping[str, Mapping[str, Any]],
    units: Units,
) -> None:
    """Write every model's calibration, and the prediction sets and ood thresholds of the fine-tuned one.

    Everything is fitted on validation, as ``fitted`` is, and measured on test. An export states the same of its model,
    so what was fitted, the thresholds and the reference features of the models that can be exported are written for it.
    """
    calibrations = {
        name: calibration(model.outputs, values, model.target, fitted[name]) for name, model in models.items()
    }
    references = {name: models[name].reference_features for name in EXPORTABLE}
    sets = {name: conformal(models[name].outputs, values, models[name].target, units) for name in EXPORTABLE}
    ood = {name: ood_thresholds(models[name].ood_distances, len(references[name])) for name in EXPORTABLE}
    for_export = {
        name: {
            **describe(models[name].target),
            **fitted[name],
            "conformal": [{key: each[key] for key in ("method", "level", "threshold")} for each in sets[name]],
            "out_of_distribution": {key: value for key, value in ood[name].items() if key != "flagged"},
        }
        for name in EXPORTABLE
    }
    write_ood_reference({name: (for_export[name], references[name]) for name in EXPORTABLE})
    trust = {"calibration": calibrations, "ece_bins": ECE_BINS}
    write_json(TRUST, trust | {"conformal": sets["finetune"], "out_of_distribution": ood["finetune"]})


def calibration(outputs: Outputs, values: SplitValues, target: Target, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was ``fitted`` on validation, and measure the reliability of the answers on test."""
    return {**fitted, **target.reliability(outputs["test"], values["test"], fitted)}


def conformal(
    outputs: Outputs, values: SplitValues, target: Target, units: Units | None = None
) -> list[dict[str, Any]]:
    """Fit conformal thresholds on validation, and measure on test what they give, for each method and level.

    Returns:
        For each ``method`` and ``level``: ``threshold``, None where everything is in the set; ``coverage``, the mean
        share of what is true that is in the set or interval, with its ``coverage_interval``: exact where each image's
        share is all or nothing, else of the bootstrap, None without ``units``; ``mean_size`` of the sets, or width of
        the intervals; of sets the fraction that is ``empty`` and ``sizes``, how many sets of each size; and
        ``per_class``, the same of each group of images that the target names, such as a class.
    """
    levels = target.conformal(outputs["validation"], values["validation"])
    measured = target.covered(outputs["test"], values["test"], levels)
    groups = target.breakdown(values["test"])
    return [level | _measure(each, groups, units) for level, each in zip(levels, measured, strict=True)]


def _measure(covered: Covered, groups: Sequence[Strata], units: Units | None) -> dict[str, Any]:
    """Return the figures of one level."""
    shares, sizes = (each.reshape(len(each), -1) for each in covered)
    there = ~np.isnan(shares)
    known = there.sum(axis=1)
    share = np.divide(np.where(there, shares, 0).sum(axis=1), known, out=np.full(len(known), np.nan), where=known > 0)
    found, n = float(np.nansum(share)), int((known > 0).sum())
    if np.isin(share[known > 0], (0, 1)).all():
        ends: list[float] | None = exact_interval(round(found), n) if n else None
    else:
        ends = None if units is None else interval(replicate_means(share, units))
    figures: dict[str, Any] = {
        "coverage": round(found / n, 6) if n else None,
        "coverage_interval": ends,
        "mean_size": _mean(float(sizes.sum()), sizes.size),
    }
    if np.issubdtype(sizes.dtype, np.integer):
        by_size = np.bincount(sizes[:, 0])
        of_size = {str(each): int(by_size[each]) for each in np.flatnonzero(by_size).tolist()}
        figures |= {"empty": round(float(by_size[0] / len(sizes)), 6), "sizes": of_size}
    figures["per_class"] = [
        row for strata, *columns in zip(groups, shares.T, sizes.T, strict=True) for row in _of_groups(strata, *columns)
    ]
    return figures


def _of_groups(strata: Strata, share: NDArray[Any], size: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the coverage and the mean size of each group of images, from those of each image, (n,) both."""
    count = len(strata.names)
    images = np.bincount(strata.groups, minlength=count)
    held, summed = (np.bincount(strata.groups, each[strata.images], count) for each in (share, size))
    return [
        {
            "class": name,
            "pictures": int(images[i]),
            "coverage": round(float(held[i] / images[i]), 6) if images[i] else None,
            "mean_size": _mean(float(summed[i]), int(images[i])) if images[i] else None,
        }
        for i, name in enumerate(strata.names)
    ]


def _mean(total: float, count: int) -> float | None:
    """Return a mean size to four decimals; None if it is infinite."""
    return round(total / count, 4) if np.isfinite(total) else None
