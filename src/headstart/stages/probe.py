"""Find the linear head on the cached features, CE + λ‖W‖² along a path of λ, and what it is compared with.

reads:   data/prepared (labels of train and validation), data/features (and there the backbone's own classifier, for
         probe.class_map)
writes:  models/probe (the heads along the path, and which has the lowest validation loss), models/baselines (what each
         of probe.heads and zero_shot says of the images outside train), reports/probe.json (what was chosen, its
         figures on validation and times, and what was skipped and why), reports/probe/l2_path.csv
params:  probe

The chosen head is the baseline that fine-tuning has to beat; that starts from it, or from the one at its own λ where
that is larger. The others are in a folder of their own, so that a change of probe.heads does not train anew.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import Params, ProbeConfig
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import write_report, write_table
from headstart.data.dataset import PreparedDataset, read_labels
from headstart.features.cache import read_features
from headstart.models.head import Head, read_pretrained_head, write_heads
from headstart.probe.logistic import cross_entropy, l2_path
from headstart.probe.outputs import write_baselines
from headstart.probe.sklearn_heads import Labelled, fit, reason_to_skip
from headstart.probe.zero_shot import REST, resolve, summed
from headstart.stages.program import main

PARAMS = ("probe",)
READS = (paths.PREPARED, paths.FEATURES)
WRITES = (paths.PROBE, paths.BASELINES, paths.L2_PATH)
ZERO_SHOT = "zero_shot"

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Solve the path on train, choose λ on validation; then the same for the other heads."""
    began = time.perf_counter()
    prepared, probe = PreparedDataset.open(), params.probe
    zero_shot = None if probe.class_map is None else _zero_shot(probe, prepared.classes)
    train = Labelled(read_features(prepared.rows("train")), read_labels("train"))
    validation = Labelled(read_features(prepared.rows("validation")), read_labels("validation"))

    report = _linear_head(probe, train, validation, len(prepared.classes))
    outputs = _Outputs(prepared, validation)
    skipped = {}
    for name in probe.heads:
        if reason := reason_to_skip(name, len(prepared.classes)):
            skipped[name] = reason
            logger.info("%-9s  skipped: %s", name, reason)
            continue
        fitting = time.perf_counter()
        fitted = fit(name, train, validation, len(prepared.classes), probe.l2)
        outputs.add(name, fitted.settings, fitted.predict, fit_seconds=time.perf_counter() - fitting)
    if zero_shot is not None:
        settings, predict = zero_shot
        outputs.add(ZERO_SHOT, settings, predict, fit_seconds=0.0)
    write_baselines(outputs.rows, outputs.log_probabilities)
    report |= {"heads": outputs.figures, "skipped": skipped, "seconds": round(time.perf_counter() - began, 2)}
    write_report("probe", report)
    logger.info("probe: λ %.1e chosen, validation accuracy %.4f", report["l2"], report["val_accuracy"])


def _zero_shot(probe: ProbeConfig, classes: list[str]) -> tuple[dict[str, Any], Predict]:
    """Check the map of classes, and give it by index and the classifier that it makes."""
    own = read_pretrained_head()
    if own is None:
        raise UserError(
            "probe.class_map: this backbone came without a linear classifier of its own (backbone.pretrained is false, "
            "or its weights have none, as most self-supervised ones): set it to null, or choose another backbone.name"
        )
    assert probe.class_map is not None
    sets = resolve(probe.class_map, classes, own)
    shown = {
        name: REST if probe.class_map[name] == REST else members.tolist()
        for name, members in zip(classes, sets, strict=True)
    }
    return shown, lambda features: summed(features, own, sets)


def _linear_head(probe: ProbeConfig, train: Labelled, validation: Labelled, classes: int) -> dict[str, Any]:
    """Solve the path, write its heads and its table, and give the chosen one's figures."""
    began = time.perf_counter()
    heads, table = [], []
    for l2, weight, bias in l2_path(train.features, train.labels, classes, probe.l2):
        head = Head(weight.astype(np.float32), bias.astype(np.float32), l2)
        val_loss, val_accuracy = _judged(head.logits(validation.features), validation.labels)
        train_loss = cross_entropy(head.logits(train.features), train.labels)
        heads.append(head)
        table.append((l2, train_loss, float((weight**2).sum()), val_loss, val_accuracy))
        logger.info("λ %.1e  train %.4f  validation %.4f  accuracy %.4f", l2, train_loss, val_loss, val_accuracy)

    best = int(np.argmin([val_loss for *_, val_loss, _ in table]))
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


class _Outputs:
    """What the baselines say of the images outside train, and their figures on validation."""

    def __init__(self, prepared: PreparedDataset, validation: Labelled) -> None:
        self.rows = np.setdiff1d(np.arange(len(prepared.ids)), prepared.rows("train"))
        self.log_probabilities: dict[str, NDArray[np.float32]] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self._validation = validation
        self._chosen_by = np.isin(self.rows, prepared.rows("validation"))
        self._unseen = read_features(self.rows[~self._chosen_by])

    def add(self, name: str, settings: dict[str, Any], predict: Predict, *, fit_seconds: float) -> None:
        """Ask a baseline; the images that it was not even chosen by are timed apart, as evaluate's other models."""
        chosen_by = predict(self._validation.features)
        began = time.perf_counter()
        unseen = predict(self._unseen)
        predict_seconds = time.perf_counter() - began
        outputs = np.empty((len(self.rows), chosen_by.shape[1]), np.float32)
        outputs[self._chosen_by], outputs[~self._chosen_by] = chosen_by, unseen
        self.log_probabilities[name] = outputs
        val_loss, val_accuracy = _judged(chosen_by, self._validation.labels)
        self.figures[name] = {
            "settings": settings,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "fit_seconds": round(fit_seconds, 3),
            "predict_seconds": round(predict_seconds, 3),
        }
        logger.info("%-9s  validation %.4f  accuracy %.4f  in %.1f s", name, val_loss, val_accuracy, fit_seconds)


def _judged(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    return cross_entropy(logits, labels), float((logits.argmax(1) == labels).mean())


if __name__ == "__main__":
    main(run, PARAMS)
