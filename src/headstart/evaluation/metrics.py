"""Figures of a classifier on labelled images, and the leaderboard that compares classifiers."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multiclass_stat_scores,
)

from headstart.core.text import text_table
from headstart.evaluation.bootstrap import ECE_BINS

LEADERBOARD = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "nll": "NLL",
    "ece": "ECE",
}


def classification_figures(
    logits: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], top_k: int
) -> dict[str, Any]:
    """Compute a classifier's figures, plain JSON values.

    Args:
        logits: float (n, classes), n at least 1.
        labels: int64 (n,), indices into ``classes``; some classes may not occur.
        classes: the names of the classes, at least 2.
        top_k: k of the top-k accuracy.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall, and ``macro_f1``, the mean F1, over the classes that occur
        in ``labels``; ``top_<k>_accuracy``, unless there are no more than k classes; ``nll``, the mean negative
        log-likelihood in nats; ``brier``, the mean squared distance of the probabilities from the label's (0 to 2;
        Brier 1950); ``ece``, how far confidence is from accuracy, in ``ECE_BINS`` equally wide bins; ``auroc``, the
        area under the curve of each class against the rest, on average over the classes that occur, or None;
        ``per_class``, one dict a class with ``class``, ``precision``, ``recall``, ``f1`` and ``support`` (a list, which
        ``dvc metrics show`` leaves out). A class that does not occur has no recall and no F1: they are None, as is the
        precision of a class that is never predicted.
    """
    scores, target = torch.from_numpy(logits), torch.from_numpy(labels)
    count = len(classes)
    per_class = _per_class(scores, target, classes)
    occurring = [entry for entry in per_class if entry["support"]]
    figures: dict[str, Any] = {
        "accuracy": _rounded(multiclass_accuracy(scores, target, num_classes=count, average="micro")),
        "balanced_accuracy": round(fmean(entry["recall"] for entry in occurring), 6),
        "macro_f1": round(fmean(entry["f1"] for entry in occurring), 6),
    }
    if top_k < count:
        top = multiclass_accuracy(scores, target, num_classes=count, average="micro", top_k=top_k)
        figures[f"top_{top_k}_accuracy"] = _rounded(top)
    probabilities = scores.double().softmax(1)
    figures["nll"] = _rounded(cross_entropy(scores.double(), target))
    figures["brier"] = _rounded((probabilities - one_hot(target, count)).square().sum(1).mean())
    figures["ece"] = _rounded(multiclass_calibration_error(probabilities, target, count, n_bins=ECE_BINS))
    return {**figures, "auroc": _auroc(probabilities.numpy(), labels), "per_class": per_class}


def _per_class(scores: Tensor, target: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    count = len(classes)
    true_positive, false_positive, _, _, support = multiclass_stat_scores(
        scores, target, num_classes=count, average="none"
    ).T
    precision, recall, f1 = (
        metric(scores, target, num_classes=count, average="none")
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    )
    return [
        {
            "class": name,
            "precision": _rounded(precision[i]) if true_positive[i] + false_positive[i] > 0 else None,
            "recall": _rounded(recall[i]) if support[i] else None,
            "f1": _rounded(f1[i]) if support[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]


def _auroc(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> float | None:
    """Average over the classes that occur beside others; each costs a sort of all images."""
    occurring = np.unique(labels)
    if len(occurring) < 2:
        return None
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in occurring]
    return round(float(np.mean(areas)), 6)


def leaderboard(report: dict[str, Any]) -> str:
    """Write the content of ``reports/evaluate.json`` as an aligned table, the most accurate model first.

    Beside the accuracy stands its interval; the last column is the time that its training took, in seconds, choosing
    its settings included.
    """
    models = sorted(report["models"].items(), key=lambda model: model[1]["accuracy"], reverse=True)
    first, *others = LEADERBOARD
    table = [["model", LEADERBOARD[first], "95 % interval", *(LEADERBOARD[key] for key in others), "fitted in"]]
    for name, figures in models:
        low, high = figures["intervals"][first]
        row = [name, f"{figures[first]:.4f}", f"{low:.3f}-{high:.3f}"]
        table.append([*row, *(f"{figures[key]:.4f}" for key in others), f"{figures['fit_seconds']:.1f} s"])
    return text_table(table)


def _rounded(figure: Tensor) -> float:
    """Leave out the digits that float32 does not have."""
    return round(float(figure), 6)
