"""The leaderboard: every model's figures with their intervals, the comparisons with fine-tuning, and a verdict."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.text import text_table
from headstart.evaluation.bootstrap import (
    LEVEL,
    REPLICATES,
    Units,
    fraction_interval,
    interval,
    replicate_figures,
)
from headstart.evaluation.significance import compare, correct_p_values, verdict
from headstart.targets.class_figures import classification_figures, mean_auroc, sum_by_unit
from headstart.targets.likelihood import correct_predictions
from headstart.targets.target import Figures

if TYPE_CHECKING:  # it imports torch, which printing the leaderboard does not need
    from collections.abc import Mapping

    from headstart.evaluation.predictions import ModelPredictions

LEADERBOARD_COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "nll": "NLL",
    "ece": "ECE",
}


def compute_leaderboard(
    models: "Mapping[str, ModelPredictions]",
    labels: NDArray[np.int64],
    classes: list[str],
    units: Units,
    top_k: int,
) -> dict[str, Any]:
    """Compute the content of ``reports/evaluate.json`` from the predictions for the test images.

    The model ``finetune`` is compared with each other one.
    """
    grouped, fractions = units.groups is not None, ("accuracy", f"top_{top_k}_accuracy")
    figures, replicates, correct = dict[str, Any](), dict[str, Figures](), dict[str, NDArray[np.bool_]]()
    for name, model in models.items():
        logits = model.logits["test"]
        sums = sum_by_unit(logits, labels, top_k, units.of_image, len(units.stratum))
        replicates[name] = replicate_figures(sums, units, top_k)
        correct[name] = correct_predictions(logits, labels)
        figures[name] = {
            **classification_figures(sums.sum(axis=0), mean_auroc(logits, labels), classes, top_k),
            "fit_seconds": model.fit_seconds,
            "seconds": model.seconds,
            "intervals": {
                key: fraction_interval(each, units.independent()) if key in fractions else interval(each)
                for key, each in replicates[name].items()
            },
        }
    others = [name for name in models if name != "finetune"]
    comparisons = correct_p_values(
        [compare(("finetune", name), correct, figures, replicates, grouped=grouped) for name in others]
    )
    # The rival is chosen on validation: the best of several on test would owe some of its lead to luck there.
    rivals = [i for i, name in enumerate(others) if not models[name].remark]
    rival = max(rivals, key=lambda i: models[others[i]].val_accuracy)
    remarks = [model.remark for model in models.values() if model.remark]
    return {
        "pictures": len(labels),
        "classes": classes,
        "verdict": " ".join([verdict(comparisons[rival], figures, len(labels)), *remarks]),
        "models": figures,
        "comparisons": comparisons,
        "bootstrap": {"replicates": REPLICATES, "level": LEVEL, "units": "groups" if grouped else "pictures"},
    }


def format_leaderboard(report: dict[str, Any]) -> str:
    """Format the content of ``reports/evaluate.json`` as an aligned table, the most accurate model first.

    Beside the accuracy stands its interval; the last column is the time in seconds that training took, with the choice
    of the settings.
    """
    first, *others = LEADERBOARD_COLUMNS.values()
    table = [["model", first, "95 % interval", *others, "fitted in"]]
    for name, figures in sorted(report["models"].items(), key=lambda model: -model[1]["accuracy"]):
        accuracy, *cells = (f"{figures[key]:.4f}" for key in LEADERBOARD_COLUMNS)
        low, high = figures["intervals"]["accuracy"]
        table.append([name, accuracy, f"{low:.3f}-{high:.3f}", *cells, f"{figures['fit_seconds']:.1f} s"])
    return text_table(table)
