"""The results of evaluate in the wandb run of the fine-tuning: figures, tables, the most confident mistakes.

All of it goes into the run's summary and nothing into its history, so a second evaluate replaces what the first logged.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.config.schema import RunConfig
from headstart.core.io import read_table
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

    Args:
        run: the section of params.
        prepared: the images.
        rows: those of the test split, in the order of reports/evaluate/predictions.csv.
        report: the content of reports/evaluate.json.
    """
    with resume_run(run, "evaluate") as resumed:
        if resumed is None:
            return
        predictions = read_table(PREDICTIONS)
        figures = {
            f"test/{model}/{name}": value for model, of in report["models"].items() for name, value in _floats(of)
        }
        tables = {
            "leaderboard": _leaderboard(report["models"]),
            "confusion": _confusion(predictions),
            "mistakes": _mistakes(prepared, rows, predictions),
        }
        resumed.summary.update({"verdict": report["verdict"], **figures, **tables})


def _floats(figures: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in figures.items() if isinstance(value, float)]


def _leaderboard(models: dict[str, dict[str, Any]]) -> Any:
    from wandb import Table  # noqa: PLC0415

    names = [name for name, _ in _floats(models["finetune"])]
    rows = [
        [model, *(figures[name] for name in names), *figures["intervals"]["accuracy"]]
        for model, figures in sorted(models.items(), key=lambda item: -item[1]["accuracy"])
    ]
    return Table(columns=["model", *names, "accuracy_low", "accuracy_high"], data=rows)


def _confusion(predictions: list[dict[str, str]]) -> Any:
    from wandb import Table  # noqa: PLC0415

    counts = Counter((row["label"], row["finetune"]) for row in predictions)
    return Table(columns=["actual", "predicted", "pictures"], data=[[*pair, n] for pair, n in sorted(counts.items())])


def _mistakes(prepared: PreparedDataset, rows: NDArray[np.int64], predictions: list[dict[str, str]]) -> Any:
    import wandb  # noqa: PLC0415

    wrong = [
        (float(prediction["finetune_probability"]), int(row), prediction)
        for row, prediction in zip(rows, predictions, strict=True)
        if prediction["finetune"] != prediction["label"]
    ]
    table = wandb.Table(columns=["picture", "source", "label", "predicted", "probability"])
    for probability, row, prediction in sorted(wrong, key=lambda each: -each[0])[:MAX_MISTAKES]:
        image = Image.fromarray(prepared.pixels(row))
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        shown = wandb.Image(image)
        table.add_data(shown, prediction["source"], prediction["label"], prediction["finetune"], probability)
    return table
