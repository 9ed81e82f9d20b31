"""The files that the report is made from, and one clear error where one is missing, damaged or an earlier version's."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import existing, read_json

ReportRow = dict[str, Any]


def number(text: str) -> float | None:
    """Read a number, None where its cell is empty."""
    return float(text) if text else None


# The keys and columns that the page shows, and what a column's text is made into.
KEYS = {
    paths.report_of("prepare"): ("pictures", "splits", "per_class", "class_imbalance", "side_range", "odd_pictures",
                               "bad"),
    paths.report_of("features"): ("duplicates_across_splits", "near_duplicate_cosine", "suspicious_labels"),
    paths.report_of("finetune"): ("best_epoch", "epochs", "stopped_early", "precision", "groups", "ledger"),
    paths.report_of("evaluate"): ("pictures", "classes", "verdict", "models", "comparisons", "bootstrap"),
    paths.TRUST: ("calibration", "ece_bins", "conformal", "out_of_distribution"),
    paths.RUN_INFO: ("params", "headstart", "versions", "python", "machine", "gpu", "git", "data_sha256",
                            "weights_sha256"),
}  # fmt: skip
Columns = dict[str, Callable[[str], Any]]
SUSPICIOUS: Columns = {
    "row": int, "source": str, "split": str, "label": str, "suggested": str, "label_probability": float,
    "suggested_probability": float,
}  # fmt: skip
COLUMNS: dict[Path, Columns] = {
    paths.ODD_IMAGES: {"row": int, "source": str, "split": str, "problem": str, "value": str},
    paths.DUPLICATES: {
        "kind": str, "row": int, "source": str, "split": str, "other_row": int, "other_source": str,
        "other_split": str, "cosine": float, "hash_distance": int,
    },
    paths.FEATURE_LABEL_ERRORS: SUSPICIOUS,
    paths.L2_PATH: {"log10_l2": float, "val_loss": float},
    paths.HISTORY: {"epoch": int, "train_loss": number, "val_loss": float, "val_accuracy": float},
    paths.LEDGER: {
        "epoch": int, "group": str, "norm": float, "distance": float, "shrink": float, "total_shrink": float,
        "data_movement": float, "equivalent_l2": number,
    },
    paths.TEST_LABEL_ERRORS: SUSPICIOUS,
    paths.SLICES: {
        "column": str, "value": str, "pictures": int, "accuracy": float, "low": float, "high": float,
    },
}  # fmt: skip


class PredictionRow(NamedTuple):
    """What the fine-tuned model says of a test image: ``id`` as in ``Prepared.ids``, and its softmax's largest."""

    id: int
    source: str
    label: str
    predicted: str
    probability: float


def read_files() -> dict[str, Any]:
    """Read all but the predictions.

    Returns:
        The content of each file by its name below ``reports``: ``evaluate`` of evaluate.json (a dict),
        ``finetune_history`` of finetune/history.csv (a dict a line, by column).

    Raises:
        UserError: one of them is missing, damaged, or lacks what the page shows.
    """
    contents: dict[Path, Any] = {path: _keys_of(path, keys) for path, keys in KEYS.items()}
    contents |= {path: _rows_of(path, columns) for path, columns in COLUMNS.items()}
    kept = contents[paths.report_of("finetune")]["best_epoch"]
    if kept not in {row["epoch"] for row in contents[paths.HISTORY]}:
        raise unreadable(paths.HISTORY, f"it has no epoch {kept}")
    if not contents[paths.L2_PATH]:
        raise unreadable(paths.L2_PATH, "it has no lines")
    return {
        "_".join(path.relative_to(paths.REPORTS).with_suffix("").parts): content for path, content in contents.items()
    }


def read_predictions() -> Iterator[PredictionRow]:
    """Stream the fine-tuned model's predictions of the test images; raises UserError."""
    columns = ("id", "source", "label", "finetune", "finetune_probability")
    with existing(paths.PREDICTIONS).open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        try:
            header = next(lines, [])
            places = [header.index(column) for column in columns]
            for line in lines:
                name, source, label, predicted, probability = (line[place] for place in places)
                yield PredictionRow(int(name, 16), source, label, predicted, float(probability))
        except (ValueError, IndexError, csv.Error) as error:
            raise unreadable(paths.PREDICTIONS, f"line {lines.line_num}: {error}") from error


def unreadable(path: Path, problem: str) -> UserError:
    """Make the error of a file that is there but cannot be used, such as one that an earlier version wrote."""
    stage = path.stem if path.parent == paths.REPORTS else path.parent.name
    return UserError(
        f"{path} is damaged, or of another run or version ({problem}): run `dvc repro`, or where that finds nothing "
        f"to do `dvc repro -f {stage}`"
    )


def _keys_of(path: Path, keys: tuple[str, ...]) -> ReportRow:
    try:
        content = read_json(path)
        return {key: content[key] for key in keys}
    except KeyError as error:
        raise unreadable(path, f"it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise unreadable(path, str(error)) from error


def _rows_of(path: Path, columns: Columns) -> list[ReportRow]:
    try:
        with existing(path).open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if missing := [name for name in columns if name not in (lines.fieldnames or ())]:
                raise unreadable(path, f"it has no column {missing[0]!r}")
            return [{name: read(line[name]) for name, read in columns.items()} for line in lines]
    except (ValueError, TypeError, csv.Error) as error:
        raise unreadable(path, str(error)) from error
