"""What evaluate found, in the wandb run of the fine-tuning: figures in the summary, tables, the confident mistakes.

All of it goes into the run's summary, none into its history: told again after another evaluate, it replaces what stood
there.
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

MISTAKES = 64
SIDE = 128
"""Of a thumbnail, in pixels, at most."""


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
    with resume_run(run, "evaluate") as tracked:
        if tracked is None:
            return
        predictions = read_table(PREDICTIONS)
        tracked.summary.update(
            {
                "verdict": report["verdict"],
                **{
                    f"test/{name}/{key}": value
                    for name, figures in report["models"].items()
                    for key, value in figures.items()
                    if isinstance(value, float)
                },
                "leaderboard": _leaderboard(report),
                "confusion": _confusion(predictions),
                "mistakes": _mistakes(prepared, rows, predictions),
            }
        )


def _leaderboard(report: dict[str, Any]) -> Any:
    from wandb import Table  # noqa: PLC0415  (as everywhere in this package)

    figures = report["models"]
    keys = [key for key, value in figures["finetune"].items() if isinstance(value, float)]
    rows = [
        [name, *(each[key] for key in keys), *each["intervals"]["accuracy"]]
        for name, each in sorted(figures.items(), key=lambda model: -model[1]["accuracy"])
    ]
    return Table(columns=["model", *keys, "accuracy_low", "accuracy_high"], data=rows)


def _confusion(predictions: list[dict[str, str]]) -> Any:
    from wandb import Table  # noqa: PLC0415

    counts = Counter((row["label"], row["finetune"]) for row in predictions)
    return Table(columns=["actual", "predicted", "pictures"], data=[[*pair, n] for pair, n in sorted(counts.items())])


def _mistakes(prepared: PreparedDataset, rows: NDArray[np.int64], predictions: list[dict[str, str]]) -> Any:
    from wandb import Image as Picture  # noqa: PLC0415
    from wandb import Table  # noqa: PLC0415

    wrong = [
        (float(told["finetune_probability"]), int(row), told)
        for row, told in zip(rows, predictions, strict=True)
        if told["finetune"] != told["label"]
    ]
    table = Table(columns=["picture", "source", "label", "predicted", "probability"])
    for probability, row, told in sorted(wrong, key=lambda each: -each[0])[:MISTAKES]:
        image = Image.fromarray(prepared.pixels(row))
        image.thumbnail((SIDE, SIDE))
        table.add_data(Picture(image), told["source"], told["label"], told["finetune"], probability)
    return table
