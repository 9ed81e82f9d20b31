"""Find the linear head on the cached features: CE + λ‖W‖² along a path of λ.

reads:   data/prepared (labels of train and validation), data/features
writes:  models/probe (the heads along the path, and which has the lowest validation loss), reports/probe.json,
         reports/probe/l2_path.csv
params:  probe

The chosen head is the baseline that fine-tuning has to beat; that starts from it, or from the one at its own λ where
that is larger.
"""

import logging
import math
import time

import numpy as np

from headstart.assembly.program import main
from headstart.ground import artifacts
from headstart.ground.artifacts import Head, Prepared, read_features, read_labels
from headstart.ground.params import Params
from headstart.libraries.linear import cross_entropy, l2_path

PARAMS = ("probe",)
READS = (artifacts.PREPARED, artifacts.FEATURES)
L2_PATH = artifacts.REPORTS / "probe" / "l2_path.csv"
WRITES = (artifacts.PROBE, L2_PATH)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Solve the path on train, choose λ on validation."""
    began = time.perf_counter()
    prepared = Prepared.open()
    train, validation = (read_features(prepared.rows(split)) for split in ("train", "validation"))
    train_labels, labels = read_labels("train"), read_labels("validation")

    heads, table = [], []
    for l2, weight, bias in l2_path(train, train_labels, len(prepared.classes), params.probe.l2):
        head = Head(weight.astype(np.float32), bias.astype(np.float32), l2)
        logits = head.logits(validation)
        val_loss, val_accuracy = cross_entropy(logits, labels), float((logits.argmax(1) == labels).mean())
        train_loss = cross_entropy(head.logits(train), train_labels)
        heads.append(head)
        table.append((l2, train_loss, float((weight**2).sum()), val_loss, val_accuracy))
        logger.info("λ %.1e  train %.4f  validation %.4f  accuracy %.4f", l2, train_loss, val_loss, val_accuracy)

    best = int(np.argmin([val_loss for *_, val_loss, _ in table]))
    l2, train_loss, _, val_loss, val_accuracy = table[best]
    if len(table) > 1 and best in {0, len(table) - 1}:
        logger.info("probe: the best λ, %.1e, is at the end of the path: extend probe.l2 beyond it", l2)
    artifacts.write_heads(heads, best)
    # DVC's plots have linear axes only.
    columns = ("log10_l2", "l2", "train_loss", "squared_norm", "val_loss", "val_accuracy")
    artifacts.write_table(L2_PATH, columns, [(math.log10(row[0]), *row) for row in table])
    artifacts.write_report(
        "probe",
        {
            "l2": l2,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": round(time.perf_counter() - began, 2),
        },
    )
    logger.info("probe: λ %.1e chosen, validation accuracy %.4f", l2, val_accuracy)


if __name__ == "__main__":
    main(run, PARAMS)
