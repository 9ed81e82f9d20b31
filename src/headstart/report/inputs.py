"""The files that the report is made from, and one clear error where one is missing, damaged or of another version."""

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import existing, read_json
from headstart.targets.target import Target

ReportRow = dict[str, Any]


def optional_float(text: str) -> float | None:
    """Read a number, None where its cell is empty."""
    return float(text) if text else None


# The keys and columns that the page shows, and the functions that read the columns' text.
JSON_KEYS = {
    paths.report_of("prepare"): ("pictures", "splits", "per_class", "class_imbalance", "side_range", "odd_pictures",
                               "bad", "chosen"),
    paths.report_of("features"): ("duplicates_across_splits", "near_duplicate_cosine", "near_duplicates_among",
                                "suspicious_labels", "labels_learned_from", "check_seconds"),
    paths.report_of("probe"): ("augmentation",),
    paths.report_of("finetune"): ("best_epoch", "epochs", "stopped_early", "precision", "chosen", "groups",
                                "ledger"),
    paths.report_of("evaluate"): ("pictures", "classes", "verdict", "models", "comparisons", "bootstrap"),
    paths.TRUST: ("calibration", "ece_bins", "conformal", "out_of_distribution"),
    paths.RUN_INFO: ("params", "headstart", "versions", "python", "machine", "gpu", "git", "data_sha256",
                            "weights_sha256"),
}  # fmt: skip
OPTIONAL_KEYS = {paths.report_of("prepare"): ("found",)}
"""What only some data have, None elsewhere: what images with bands hold."""
Columns = dict[str, Callable[[str], Any]]
LABEL_ERROR_COLUMNS: Columns = {"row": int, "source": str, "split": str, "label": str, "suggested": str}
OPTIONAL_COLUMNS: Columns = {
    "val_refined_loss": optional_float, "label_probability": float, "suggested_probability": float, "deviation": float,
}  # fmt: skip
"""What tables have of some targets: the loss after the best temperature; how sure a label error is."""
TABLE_COLUMNS: dict[Path, Columns] = {
    paths.ODD_IMAGES: {"row": int, "source": str, "split": str, "problem": str, "value": str},
    paths.DUPLICATES: {
        "kind": str, "row": int, "source": str, "split": str, "other_row": int, "other_source": str,
        "other_split": str, "cosine": float, "hash_distance": int,
    },
    paths.FEATURE_LABEL_ERRORS: LABEL_ERROR_COLUMNS,
    paths.L2_PATH: {"log10_l2": float, "val_loss": float},
    paths.HISTORY: {"epoch": int, "train_loss": optional_float, "val_loss": float},
    paths.LEDGER: {
        "epoch": int, "group": str, "norm": float, "distance": float, "shrink": float, "total_shrink": float,
        "data_movement": float, "equivalent_l2": optional_float,
    },
    paths.TEST_LABEL_ERRORS: LABEL_ERROR_COLUMNS,
    paths.SLICES: {"column": str, "value": str, "pictures": int, "low": float, "high": float},
}  # fmt: skip
PREDICTION_COLUMNS: Columns = {"id": partial(int, base=16), "source": str, "label": str}


class PredictionRow(NamedTuple):
    """What the fine-tuned model said of a test image; ``id`` as in ``PreparedDataset.ids``, ``said`` by the target."""

    id: int
    source: str
    label: str
    said: tuple[Any, ...]


def read_inputs(target: Target) -> dict[str, Any]:
    """Read all files but the predictions, of models of a target.

    Returns:
        The content of each file by its name below ``reports``: evaluate.json as ``evaluate``, a dict;
        finetune/history.csv as ``finetune_history``, a list with a dict by column for each line. ``tune`` is None where
        the params of the run are not those that `headstart tune` chose.

    Raises:
        UserError: one of them is missing, damaged, or lacks what the page shows.
    """
    contents: dict[Path, Any] = {path: _read_keys(path, keys) for path, keys in JSON_KEYS.items()}
    of_target: dict[Path, Columns] = {
        paths.SLICES: {target.scored: float},
        paths.HISTORY: {f"val_{next(iter(target.measures))}": optional_float},
    }
    contents |= {
        path: list(_read_rows(path, columns | of_target.get(path, {}), OPTIONAL_COLUMNS))
        for path, columns in TABLE_COLUMNS.items()
    }
    kept = contents[paths.report_of("finetune")]["best_epoch"]
    if kept not in {row["epoch"] for row in contents[paths.HISTORY]}:
        raise damaged_file_error(paths.HISTORY, f"it has no epoch {kept}")
    if not contents[paths.L2_PATH]:
        raise damaged_file_error(paths.L2_PATH, "it has no lines")
    return {
        "_".join(path.relative_to(paths.REPORTS).with_suffix("").parts): content for path, content in contents.items()
    } | {"tune": _read_tuning(contents[paths.RUN_INFO]["params"]["finetune"], next(iter(target.measures)))}


def read_predictions(target: Target) -> Iterator[PredictionRow]:
    """Stream the fine-tuned model's predictions of the test images; raises UserError."""
    said = {f"finetune{suffix}": read for suffix, read in target.suffixes.items()}
    for row in _read_rows(paths.PREDICTIONS, PREDICTION_COLUMNS | said):
        yield PredictionRow(row["id"], row["source"], row["label"], tuple(row[name] for name in said))


def damaged_file_error(path: Path, problem: str) -> UserError:
    """Return the error for a file that exists but cannot be used, such as one that an earlier version wrote."""
    stage = path.stem if path.parent == paths.REPORTS else path.parent.name
    return UserError(
        f"{path} is damaged, or of another run or version ({problem}): run `dvc repro`, or where that finds nothing "
        f"to do `dvc repro -f {stage}`"
    )


def _read_tuning(finetune: ReportRow, measure: str) -> ReportRow | None:
    """Read what choosing these params cost in a measure, None where `headstart tune` did not choose them.

    ``measured`` is the measure on validation, ``corrected`` what is to be expected of it on new images.
    """
    path = paths.TUNING_REPORT
    figures = {"measured": f"val_{measure}", "corrected": f"corrected_{measure}"}
    report = _read_keys(path, ("tries", "finetune", *figures.values())) if path.exists() else None
    if report is None or report["finetune"] != finetune:
        return None
    return report | {key: report[name] for key, name in figures.items()}


def _read_keys(path: Path, keys: tuple[str, ...]) -> ReportRow:
    try:
        content = read_json(path)
        return {key: content[key] for key in keys} | {key: content.get(key) for key in OPTIONAL_KEYS.get(path, ())}
    except KeyError as error:
        raise damaged_file_error(path, f"it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise damaged_file_error(path, str(error)) from error


def _read_rows(path: Path, columns: Columns, optional: Columns | None = None) -> Iterator[ReportRow]:
    with existing(path).open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        try:
            if missing := [name for name in columns if name not in (lines.fieldnames or ())]:
                raise damaged_file_error(path, f"it has no column {missing[0]!r}")
            further = {name: read for name, read in (optional or {}).items() if name in (lines.fieldnames or ())}
            columns = columns | further
            for line in lines:
                yield {name: read(line[name]) for name, read in columns.items()}
        except (ValueError, TypeError, csv.Error) as error:
            raise damaged_file_error(path, f"line {lines.line_num}: {error}") from error
