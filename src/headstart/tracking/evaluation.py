"""The results of evaluate in the wandb run of the fine-tuning: figures, tables, the most confident mistakes.

All of it goes into the run's summary and nothing into its history, so a second evaluate replaces what the first logged.
"""

import heapq
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.config.schema import RunConfig
from headstart.core.io import table_rows
from headstart.core.paths import PREDICTIONS
from headstart.data.dataset import PreparedDataset
from headstart.tracking.wandb_run import resume_run

MAX_MISTAKES = 64
THUMBNAIL_SIZE = 128
"""Longest side in pixels."""


def track_evaluation(
    run: RunConfig, prepared: PreparedDataset, rows: NDArray[np.int64], report: dict[str, Any]
) -> None:
    """Add the leaderboard, the confusion matrix and the most confident mistakes to the run.

    ``rows`` are those of the test split in the order of predictions.csv, ``report`` is as in reports/evaluate.json.
    """
    with resume_run(run, "evaluate") as resumed:
        if resumed is None:
            return
        from wandb import Table  # noqa: PLC0415

        models = report["models"]
        names = [name for name, value in models["finetune"].items() if isinstance(value, float)]
        leaderboard = [
            [model, *(figures[name] for name in names), *figures["intervals"]["accuracy"]]
            for model, figures in sorted(models.items(), key=lambda item: -item[1]["accuracy"])
        ]
        counts = Counter((row["label"], row["finetune"]) for row in table_rows(PREDICTIONS))
        confusion = [[*pair, count] for pair, count in sorted(counts.items())]
        summary = {
            "verdict": report["verdict"],
            "leaderboard": Table(columns=["model", *names, "accuracy_low", "accuracy_high"], data=leaderboard),
            "confusion": Table(columns=["actual", "predicted", "pictures"], data=confusion),
            "mistakes": _mistakes_table(prepared, rows),
        }
        for model, figures in models.items():
            summary |= {f"test/{model}/{name}": value for name, value in figures.items() if isinstance(value, float)}
        resumed.summary.update(summary)


def _mistakes_table(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Any:
    import wandb  # noqa: PLC0415

    wrong = (
        (row, each)
        for row, each in zip(rows, table_rows(PREDICTIONS), strict=True)
        if each["finetune"] != each["label"]
    )
    table = wandb.Table(columns=["picture", "source", "label", "predicted", "probability"])
    for row, each in heapq.nlargest(MAX_MISTAKES, wrong, key=lambda mistake: float(mistake[1]["finetune_probability"])):
        image = Image.fromarray(prepared.pixels(int(row)))
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        probability = float(each["finetune_probability"])
        table.add_data(wandb.Image(image), each["source"], each["label"], each["finetune"], probability)
    return table
