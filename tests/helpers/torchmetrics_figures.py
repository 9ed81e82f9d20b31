"""The figures of evaluation by torchmetrics and torch: a second implementation, which evaluation has to equal."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)


def torchmetrics_figures(logits: NDArray[np.float32], labels: NDArray[np.int64], top_k: int) -> dict[str, float]:
    """All but the AUROC and the figures of each class; means are over the classes that occur."""
    scores, target, count = torch.from_numpy(logits), torch.from_numpy(labels), logits.shape[1]
    per_class = torchmetrics_per_class(logits, labels)
    occurring = np.unique(labels)
    probabilities = scores.double().softmax(1)
    figures = {
        "accuracy": multiclass_accuracy(scores, target, num_classes=count, average="micro"),
        "balanced_accuracy": per_class["recall"][occurring].mean(),
        "macro_f1": per_class["f1"][occurring].mean(),
        "nll": cross_entropy(scores.double(), target),
        "brier": (probabilities - one_hot(target, count)).square().sum(1).mean(),
        "ece": multiclass_calibration_error(probabilities, target, count, n_bins=15),
    }
    if top_k < count:
        top = multiclass_accuracy(scores, target, num_classes=count, average="micro", top_k=top_k)
        figures[f"top_{top_k}_accuracy"] = top
    return {name: float(value) for name, value in figures.items()}


def torchmetrics_per_class(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Precision, recall and F1, float32 (classes,) each; 0 where one is not defined."""
    metrics = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    scores, target = torch.from_numpy(logits), torch.from_numpy(labels)
    return {
        name: metric(scores, target, num_classes=logits.shape[1], average="none").numpy()
        for name, metric in metrics.items()
    }
