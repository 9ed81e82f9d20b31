"""How far a model can be trusted: reports/evaluate/trust.json, and models/reference, which goes into an export."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import write_json
from headstart.core.paths import TRUST
from headstart.evaluation.calibration import calibration
from headstart.evaluation.conformal import conformal
from headstart.evaluation.metrics import ECE_BINS
from headstart.evaluation.ood import ood_thresholds, write_ood_reference
from headstart.evaluation.predictions import ModelPredictions

EXPORTABLE = ("probe", "finetune")


def write_trust(
    models: Mapping[str, ModelPredictions], labels: dict[str, NDArray[np.int64]], classes: list[str]
) -> None:
    """Write every model's calibration, and the prediction sets and ood thresholds of the fine-tuned one.

    Everything is fitted on validation and measured on test. An export states the same of its model, so the temperature,
    the thresholds and the reference features of the models that can be exported are written for it.

    Args:
        models: by name.
        labels: int64 (n,) of validation and test.
        classes: their names.
    """
    calibrations = {name: calibration(model.logits, labels) for name, model in models.items()}
    sets = {name: conformal(models[name].logits, labels, classes) for name in EXPORTABLE}
    references = {name: models[name].reference_features for name in EXPORTABLE}
    ood = {name: ood_thresholds(models[name].ood_distances, len(references[name])) for name in EXPORTABLE}
    exported = {
        name: {
            "temperature": calibrations[name]["temperature"],
            "conformal": [{key: each[key] for key in ("method", "level", "threshold")} for each in sets[name]],
            "out_of_distribution": {key: value for key, value in ood[name].items() if key != "flagged"},
        }
        for name in EXPORTABLE
    }
    write_ood_reference({name: (exported[name], references[name]) for name in EXPORTABLE})
    trust = {"calibration": calibrations, "ece_bins": ECE_BINS}
    write_json(TRUST, trust | {"conformal": sets["finetune"], "out_of_distribution": ood["finetune"]})
