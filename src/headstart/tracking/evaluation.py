"""The results of evaluate in the wandb run of the fine-tuning: figures, tables, the worst mistakes.

All of it goes into the run's summary and nothing into its history, so a second evaluate replaces what the first logged.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import RunConfig
from headstart.core.io import table_rows
from headstart.core.paths import CONFUSION, PREDICTIONS
from headstart.data.dataset import PreparedDataset
from headstart.targets.target import Mistake, best_first
from headstart.tracking.wandb_run import resume_run

MAX_MISTAKES = 64
THUMBNAIL_SIZE = 128
"""Longest side in pixels."""


def track_evaluation(
    run: RunConfig, prepared: PreparedDataset, rows: NDArray[np.int64], report: dict[str, Any]
) -> None:
    """Add the leaderboard, what is confused, or said of numbers, and the worst mistakes to the run.

    ``rows`` are those of the test split in the order of predictions.csv, ``report`` is as in reports/evaluate.json.
    """
    with resume_run(run, "evaluate") as resumed:
        if resumed is None:
            return
        from wandb import Table  # noqa: PLC0415

        models, (primary, measure) = report["models"], next(iter(prepared.target.measures.items()))
        names = [name for name, value in models["finetune"].items() if isinstance(value, float)]
        leaderboard = [
            [model, *(figures[name] for name in names), *(figures["intervals"][primary] or [None, None])]
            for model, figures in best_first(models, primary, measure.sign)
        ]
        counts = Counter((row["actual"], row["predicted"]) for row in table_rows(CONFUSION["finetune"]))
        confusion = [[*pair, count] for pair, count in sorted(counts.items())]
        summary = {
            "verdict": report["verdict"],
            "leaderboard": Table(columns=["model", *names, f"{primary}_low", f"{primary}_high"], data=leaderboard),
            "confusion": Table(columns=["actual", "predicted", "pictures"], data=confusion),
            "mistakes": _mistakes_table(prepared, rows),
        }
        for model, figures in models.items():
            summary |= {f"test/{model}/{name}": value for name, value in figures.items() if isinstance(value, float)}
        resumed.summary.update(summary)


def _mistakes_table(prepared: PreparedDataset, rows: NDArray[np.int64]) -> Any:
    import wandb  # noqa: PLC0415

    target = prepared.target

    def wrong() -> Iterator[tuple[int, str, Mistake]]:
        for row, each in zip(rows.tolist(), table_rows(PREDICTIONS), strict=True):
            said = [read(each[f"finetune{suffix}"]) for suffix, read in target.suffixes.items()]
            if mistake := target.mistake(each["label"], said):
                yield row, each["source"], mistake

    caption = prepared.bands.stretch() if prepared.bands else None
    table = wandb.Table(columns=["picture", "source", "label", "predicted", "badness", "note"])
    for row, source, mistake in heapq.nlargest(MAX_MISTAKES, wrong(), key=lambda each: each[2].badness):
        image = prepared.image(row)
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        said = (source, mistake.label, mistake.predicted, mistake.badness, mistake.note)
        table.add_data(wandb.Image(image, caption=caption), *said)
    return table
