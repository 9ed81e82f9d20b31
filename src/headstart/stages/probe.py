"""Fit the linear head on the cached features, CE + λ‖W‖² along a path of λ, and the baselines to compare it with.

reads:   data/prepared (labels of train and validation), data/features (with the backbone's own classifier, for
         probe.class_map)
writes:  models/probe (the heads along the path, which has the lowest validation loss, and in augmentation.json which
         flips and turns of an image keep its label: what finetune.augment's auto follows), models/baselines (the
         predictions of probe.heads and zero_shot for the images outside train), reports/probe.json (the chosen head,
         its figures on validation and times, and what was skipped and why), reports/probe/l2_path.csv
params:  probe

The chosen head is the baseline that fine-tuning has to beat. Fine-tuning starts from it, or from the one at its own λ
where that is larger. The baselines are in a folder of their own, so that a change of probe.heads does not train again.
"""

import logging
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import Params, RunConfig
from headstart.core import paths
from headstart.core.io import write_json, write_report, write_table
from headstart.data.dataset import PreparedDataset, read_labels
from headstart.features.cache import read_changed_features, read_features
from headstart.models.head import Head, read_head, write_heads
from headstart.probe.augmentation import judge_changes
from headstart.probe.logistic import logistic_path
from headstart.probe.outputs import write_baselines
from headstart.probe.sklearn_heads import HEADS, LabelledFeatures, fit_head, reason_to_leave_out, reason_to_skip
from headstart.probe.temperature import negative_log_likelihood
from headstart.probe.zero_shot import zero_shot_classifier
from headstart.stages.program import main

PARAMS = ("probe",)
READS = (paths.PREPARED, paths.FEATURES)
WRITES = (paths.PROBE, paths.BASELINES, paths.L2_PATH)

PATH_TOLERANCE = 1e-6
"""Of ``logistic_path``, where it only finds the best λ; the head at that is fitted to the solver's own."""
WORTH_A_GPU = 10**10
"""Images x features x classes from which the path takes a CPU longer than the import of torch."""
SOLVER_BYTES = 2**31
"""GPU memory that the solver takes beside what grows with the images."""

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Fit the heads along the path and choose λ on validation, then fit the baselines."""
    began = time.perf_counter()
    prepared, probe = PreparedDataset.open(), params.probe
    zero_shot = None if probe.class_map is None else zero_shot_classifier(probe.class_map, prepared.classes)
    train = LabelledFeatures(read_features(prepared.rows("train")), read_labels("train"))
    validation = LabelledFeatures(read_features(prepared.rows("validation")), read_labels("validation"))

    report = _fit_linear_heads(params, train, validation, len(prepared.classes))
    report["augmentation"] = _judge_changes(prepared, validation)
    skipped = {}
    classes = len(prepared.classes)
    with write_baselines(prepared) as outputs:
        for name in HEADS if probe.heads == "auto" else probe.heads:
            reason = reason_to_skip(name, classes)
            if probe.heads == "auto" and reason is None:
                reason = reason_to_leave_out(name, train.features.size * classes)
            if reason is not None:
                skipped[name] = reason
                logger.info("%-9s  skipped: %s", name, reason)
                continue
            began_head = time.perf_counter()
            head = fit_head(name, train, validation, classes, probe.l2)
            outputs.add(name, head.settings, head.predict, fit_seconds=time.perf_counter() - began_head)
        if zero_shot is not None:
            outputs.add("zero_shot", *zero_shot, fit_seconds=0.0)
    report |= {"heads": outputs.figures, "skipped": skipped, "seconds": round(time.perf_counter() - began, 2)}
    write_report("probe", report)
    logger.info("probe: λ %.1e chosen, validation accuracy %.4f", report["l2"], report["val_accuracy"])


def _fit_linear_heads(
    params: Params, train: LabelledFeatures, validation: LabelledFeatures, classes: int
) -> dict[str, Any]:
    """Fit the heads along the path, write them and their table, and return the chosen one's figures."""
    began = time.perf_counter()
    heads, table = [], []
    data = (*_placed(train, classes, params.run), classes)

    def figures(head: Head) -> tuple[float, float, float, float, float]:
        logits = head.logits(validation.features)
        val_loss = negative_log_likelihood(logits, validation.labels)
        val_accuracy = float((logits.argmax(1) == validation.labels).mean())
        train_loss = negative_log_likelihood(head.logits(train.features), train.labels)
        return head.l2, train_loss, float((head.weight.astype(np.float64) ** 2).sum()), val_loss, val_accuracy

    for head in map(_head, logistic_path(*data, params.probe.l2, tolerance=PATH_TOLERANCE)):
        heads.append(head)
        table.append(figures(head))
        l2, train_loss, _, val_loss, val_accuracy = table[-1]
        logger.info("λ %.1e  train %.4f  validation %.4f  accuracy %.4f", l2, train_loss, val_loss, val_accuracy)

    best = int(np.argmin([val_loss for *_, val_loss, _ in table]))
    start = heads[best].weight, heads[best].bias
    (heads[best],) = map(_head, logistic_path(*data, [heads[best].l2], start=start))
    table[best] = figures(heads[best])
    l2, train_loss, _, val_loss, val_accuracy = table[best]
    if len(table) > 1 and best in {0, len(table) - 1}:
        logger.info("probe: the best λ, %.1e, is at the end of the path: extend probe.l2 beyond it", l2)
    write_heads(heads, best)
    # DVC's plots have linear axes only.
    columns = ("log10_l2", "l2", "train_loss", "squared_norm", "val_loss", "val_accuracy")
    write_table(paths.L2_PATH, columns, [(math.log10(row[0]), *row) for row in table])
    return {
        "l2": l2,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "fit_seconds": round(time.perf_counter() - began, 3),
    }


def _head(solution: tuple[float, NDArray[np.float64], NDArray[np.float64]]) -> Head:
    l2, weight, bias = solution
    return Head(weight.astype(np.float32), bias.astype(np.float32), l2)


def _placed(data: LabelledFeatures, classes: int, run: RunConfig) -> tuple[Any, Any]:
    """Return features and labels where the solver shall run: on a GPU that has room, if it is worth torch's import."""
    if run.accelerator == "cpu" or data.features.size * classes < WORTH_A_GPU:
        return data.features, data.labels
    import torch  # noqa: PLC0415  (takes seconds)

    needed = 4 * len(data.labels) * (2 * data.features.shape[1] + classes) + SOLVER_BYTES
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < needed:
        return data.features, data.labels
    torch.set_float32_matmul_precision("high")  # TF32 where float32 only gives the direction of a step
    return torch.as_tensor(data.features, device="cuda"), torch.as_tensor(data.labels, device="cuda")


def _judge_changes(prepared: PreparedDataset, validation: LabelledFeatures) -> dict[str, Any]:
    """Judge the changes that the features stage tried, and write the verdicts."""
    rows, changed = read_changed_features()
    tried = np.searchsorted(prepared.rows("validation"), rows)
    features, labels = validation.features[tried], validation.labels[tried]
    evidence = judge_changes(read_head(), features, changed, labels, prepared.classes)
    write_json(paths.AUGMENTATION, evidence)
    return evidence


if __name__ == "__main__":
    main(run, PARAMS)
