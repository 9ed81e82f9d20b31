"""Compare the models on the test split, the only time that its labels are read.

reads:   data/prepared (pictures and labels of test), data/features, models/probe, models/baselines, models/finetune,
         reports/probe.json and reports/finetune.json (the time that fitting took)
writes:  reports/evaluate.json (the leaderboard), reports/evaluate/predictions.csv (every test picture),
         reports/evaluate/confusion_probe.csv, reports/evaluate/confusion_finetune.csv
params:  evaluate

A model's fit_seconds are those of its training and the choice of its settings, its seconds those of its own work on the
test split: the features are there already. The baselines are asked by the probe, which does not see the labels.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.assembly.inference import infer
from headstart.assembly.program import main
from headstart.assembly.ranks import Ranks, connect
from headstart.assembly.tracking import summarise
from headstart.ground import artifacts
from headstart.ground.artifacts import Prepared, manifest_rows, read_features, read_head, read_json, read_labels
from headstart.ground.baselines import read_baselines
from headstart.ground.params import Params
from headstart.libraries.backbone import channels_last
from headstart.libraries.metrics import classification_figures, leaderboard

PARAMS = ("evaluate",)
PROBE_REPORT, FINETUNE_REPORT = (artifacts.REPORTS / f"{stage}.json" for stage in ("probe", "finetune"))
READS = (
    artifacts.PREPARED,
    artifacts.FEATURES,
    artifacts.PROBE,
    artifacts.BASELINES,
    artifacts.FINETUNE,
    PROBE_REPORT,
    FINETUNE_REPORT,
)
TABLES = artifacts.REPORTS / "evaluate"
PREDICTIONS = TABLES / "predictions.csv"
CONFUSION = {name: TABLES / f"confusion_{name}.csv" for name in ("probe", "finetune")}
WRITES = (PREDICTIONS, *CONFUSION.values())

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Compute each model's logits, then its figures and tables."""
    ranks, prepared = connect(params.run), Prepared.open()
    logits, times = _logits_and_times(prepared, params, ranks)
    if ranks.rank:
        return
    labels = read_labels("test")
    models = {
        name: classification_figures(outputs, labels, prepared.classes, params.evaluate.top_k) | times[name]
        for name, outputs in logits.items()
    }

    _write_tables(prepared.classes, labels, logits)
    report = {"pictures": len(labels), "classes": prepared.classes, "models": models}
    artifacts.write_report("evaluate", report)
    summarise(params.run, _scalars(models))
    logger.info("evaluate: %d test pictures of %d classes\n%s", len(labels), len(prepared.classes), leaderboard(report))


def _logits_and_times(
    prepared: Prepared, params: Params, ranks: Ranks
) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, float]]]:
    """Give each model's logits of the test split, and its fit_seconds and seconds."""
    probe, finetune = read_json(PROBE_REPORT), read_json(FINETUNE_REPORT)
    baselines = read_baselines(prepared.rows("test"))
    logits, times = {}, {}

    def compute(name: str, fit_seconds: float, function: Callable[[], NDArray[np.float32]]) -> None:
        began = time.perf_counter()
        logits[name] = function()
        times[name] = {"fit_seconds": fit_seconds, "seconds": round(time.perf_counter() - began, 3)}

    compute("probe", probe["fit_seconds"], partial(_probe_logits, prepared))
    for name, figures in probe["heads"].items():
        logits[name] = baselines[name]
        times[name] = {"fit_seconds": figures["fit_seconds"], "seconds": figures["predict_seconds"]}
    compute("finetune", finetune["training_seconds"], partial(_finetune_logits, prepared, params, ranks))
    return logits, times


def _probe_logits(prepared: Prepared) -> NDArray[np.float32]:
    """Apply the probe's head to the cached features of the test split: (n, classes)."""
    return read_head().logits(read_features(prepared.rows("test")))


def _finetune_logits(prepared: Prepared, params: Params, ranks: Ranks) -> NDArray[np.float32]:
    """Apply the fine-tuned model to the pictures of the test split, on all ranks: (n, classes)."""
    model: nn.Module = timm.create_model(f"local-dir:{artifacts.existing(artifacts.FINETUNE)}", pretrained=True)
    model = channels_last(model.eval().to(ranks.device))
    batches = infer(
        model,
        prepared,
        prepared.rows("test"),
        batch_size=params.evaluate.batch_size,
        run=params.run,
        ranks=ranks,
        label="evaluate",
    )
    return np.concatenate(list(batches))


def _write_tables(classes: list[str], labels: NDArray[np.int64], logits: dict[str, NDArray[np.float32]]) -> None:
    """Write every test picture's predictions, and for each model the table that DVC draws its confusion matrix from."""
    chosen = {name: outputs.argmax(1) for name, outputs in logits.items()}
    probability = {name: torch.from_numpy(outputs).softmax(1).amax(1).numpy() for name, outputs in logits.items()}
    pictures = (row for row in manifest_rows() if row["split"] == "test")
    columns = ["id", "source", "label", *(column for name in logits for column in (name, f"{name}_probability"))]
    rows = (
        [row["id"], row["source"], row["label"]]
        + [value for name in logits for value in (classes[chosen[name][i]], f"{probability[name][i]:.6f}")]
        for i, row in enumerate(pictures)
    )
    artifacts.write_table(PREDICTIONS, columns, rows)
    for name, path in CONFUSION.items():
        pairs = [(classes[label], classes[choice]) for label, choice in zip(labels, chosen[name], strict=True)]
        artifacts.write_table(path, ("actual", "predicted"), pairs)


def _scalars(models: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Name the figures of all models for one tracked run: ``probe/accuracy`` ..."""
    return {
        f"{name}/{key}": value
        for name, figures in models.items()
        for key, value in figures.items()
        if isinstance(value, float)
    }


if __name__ == "__main__":
    main(run, PARAMS)
