"""Figures of a classifier on labelled pictures, and the leaderboard that compares classifiers."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multiclass_stat_scores,
)

from headstart.libraries.text_table import text_table

LEADERBOARD = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "nll": "NLL"}


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
        log-likelihood in nats; ``per_class``, one dict a class with ``class``, ``precision``, ``recall``, ``f1`` and
        ``support`` (a list, which ``dvc metrics show`` leaves out). A class that does not occur has no recall and no
        F1: they are None, as is the precision of a class that is never predicted.
    """
    scores, target = torch.from_numpy(logits), torch.from_numpy(labels)
    count = len(classes)
    true_positive, false_positive, _, _, support = multiclass_stat_scores(
        scores, target, num_classes=count, average="none"
    ).T
    present, predicted = support > 0, true_positive + false_positive > 0
    precision = multiclass_precision(scores, target, num_classes=count, average="none")
    recall = multiclass_recall(scores, target, num_classes=count, average="none")
    f1 = multiclass_f1_score(scores, target, num_classes=count, average="none")

    figures: dict[str, Any] = {
        "accuracy": _rounded(multiclass_accuracy(scores, target, num_classes=count, average="micro")),
        "balanced_accuracy": _rounded(recall[present].mean()),
        "macro_f1": _rounded(f1[present].mean()),
    }
    if top_k < count:
        top = multiclass_accuracy(scores, target, num_classes=count, average="micro", top_k=top_k)
        figures[f"top_{top_k}_accuracy"] = _rounded(top)
    figures["nll"] = _rounded(cross_entropy(scores.double(), target))
    figures["per_class"] = [
        {
            "class": name,
            "precision": _rounded(precision[i]) if predicted[i] else None,
            "recall": _rounded(recall[i]) if present[i] else None,
            "f1": _rounded(f1[i]) if present[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]
    return figures


def leaderboard(report: dict[str, Any]) -> str:
    """Write the content of ``reports/evaluate.json`` as an aligned table, the most accurate model first.

    The last column is the time that its training took, in seconds, choosing its settings included.
    """
    models = sorted(report["models"].items(), key=lambda model: model[1]["accuracy"], reverse=True)
    table = [
        ["model", *LEADERBOARD.values(), "fitted in"],
        *(
            [name, *(f"{figures[key]:.4f}" for key in LEADERBOARD), f"{figures['fit_seconds']:.1f} s"]
            for name, figures in models
        ),
    ]
    return text_table(table)


def _rounded(figure: Tensor) -> float:
    """Leave out the digits that float32 does not have."""
    return round(float(figure), 6)
