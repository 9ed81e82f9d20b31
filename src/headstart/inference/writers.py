"""Predictions written as they come: to a terminal, or to a file of CSV, JSON lines or Parquet."""

import csv
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from headstart.core.errors import UserError, requirement
from headstart.core.io import atomic_write
from headstart.inference.postprocess import Prediction
from headstart.targets.target import PredictedNumber, Target

OUTPUT_NAMES = {
    "image": "picture",
    "label": "label",
    "probability": "probability",
    "labels": "labels",
    "numbers": "numbers",
    "top": "top",
    "prediction_set": "set",
    "ood_distance": "distance",
    "ood_level": "unusual",
    "error": "error",
}
"""The name of each field of ``Prediction`` in CSV, JSON, Parquet and the answers of ``headstart serve``."""
OF_EVERY_TARGET = ("image", "ood_distance", "ood_level", "error")

ROW_GROUP = 10_000
"""Rows of a Parquet file that are held in memory."""

Write = Callable[[Prediction], object]
OUT_SUFFIXES = (".csv", ".jsonl", ".parquet")


def output_names(target: Target) -> dict[str, str]:
    """Return the ``OUTPUT_NAMES`` of what a model of this target says."""
    fields = {*OF_EVERY_TARGET, *target.answer_fields}
    return {field: name for field, name in OUTPUT_NAMES.items() if field in fields}


def output_record(prediction: Prediction, target: Target) -> dict[str, Any]:
    """Return a prediction under the names that all outputs have."""
    fields = asdict(prediction)
    return {name: fields[field] for field, name in output_names(target).items()}


def check_out(out: Path) -> None:
    """Raise UserError where predictions can't be written to a file of this name."""
    if out.suffix.lower() not in OUT_SUFFIXES:
        raise UserError(f"--out {out}: its name must end in one of {', '.join(OUT_SUFFIXES)}, which sets the format")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415
        except ImportError:
            needed = shlex.quote(requirement("parquet"))
            raise UserError(f"--out {out} needs pyarrow: `pip install {needed}`, or name a .csv") from None


@contextmanager
def writing(out: Path, target: Target, top: int) -> Iterator[Write]:
    """Yield a function that writes a prediction, in CSV with ``top`` classes; the file takes its name at the end.

    ``check_out`` must have passed its name.
    """
    with atomic_write(out) as partial:
        if out.suffix.lower() == ".parquet":
            with _parquet_writer(partial, target) as write:
                yield write
            return
        with partial.open("w", newline="", encoding="utf-8") as file:
            yield csv_rows(file, target, top) if out.suffix.lower() == ".csv" else _json_lines(file, target)


def csv_rows(file: TextIO, target: Target, top: int) -> Write:
    """Return a function that writes a row of CSV, once the header is written.

    The prediction set and the labels are JSON; each class of the first ``top`` has two columns of its own, each number
    five.
    """
    writer = csv.writer(file, lineterminator="\n")
    names = list(output_names(target).values())
    first = 2 if "label" in names else 1  # which has its columns without a number
    several = {
        "top": [f"{name}_{i}" for i in range(first, top + 1) for name in ("label", "probability")],
        "numbers": [f"{name}{_number(i)}" for i in range(len(target.names)) for name in NUMBER_COLUMNS],
    }
    columns = [column for name in names for column in several.get(name, [name])]
    writer.writerow(columns)

    def write(prediction: Prediction) -> None:
        record = output_record(prediction, target)
        for name in {"labels", "set"}.intersection(record):
            if record[name] is not None:
                record[name] = json.dumps(record[name], ensure_ascii=False)
        for i, (label, probability) in enumerate(prediction.top, 1):
            record |= {f"label_{i}": label, f"probability_{i}": probability}
        for i, each in enumerate(prediction.numbers or []):
            cells = each.name, each.value, each.unit, *(each.interval or (None, None))
            record |= {f"{name}{_number(i)}": cell for name, cell in zip(NUMBER_COLUMNS, cells, strict=True)}
        writer.writerow([record.get(name) for name in columns])

    return write


NUMBER_COLUMNS = ("name", "value", "unit", "low", "high")


def _number(i: int) -> str:
    """Return what is after a column's name for the ``i``-th of several, from 0."""
    return f"_{i + 1}" if i else ""


def text_writer(file: TextIO, descriptions: Mapping[str, str]) -> Write:
    """Return a function that writes a line for people to read; control characters are written as their codes."""

    def described(label: str) -> str:
        return f"{label} ({descriptions[label]})" if descriptions.get(label, label) != label else label

    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            parts = [f"error: {prediction.error}"]
        else:
            shown = prediction.top if prediction.labels is None else prediction.labels.items()
            parts = [", ".join(f"{described(label)} {probability:.1%}" for label, probability in shown) or "no label"]
            if prediction.numbers is not None:
                only = len(prediction.numbers) == 1
                parts = [", ".join(_number_text(each, named=not only) for each in prediction.numbers)]
            if prediction.prediction_set is not None:
                parts.append(f"set: {', '.join(map(described, prediction.prediction_set)) or 'empty'}")
            if prediction.ood_level is not None:
                parts.append(f"unusual: farther from the training images than {prediction.ood_level:.0%} of usual ones")
        text = "  |  ".join([prediction.image, *parts])
        file.write("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text) + "\n")
        file.flush()

    return write


def _number_text(number: PredictedNumber, *, named: bool) -> str:
    """Return such as ``age 12.4 years (8.1 to 16.9)``, with so many digits that the interval's width has two."""
    low, high = (float("nan") if end is None else end for end in number.interval or (None, None))
    digits = f".{max(0, 1 - math.floor(math.log10(high - low)))}f" if high > low else "g"
    text = f"{number.name if named else ''} {number.value:{digits}} {number.unit}".strip()
    if number.interval is None:
        return text
    return f"{text} ({low:{digits}} to {high:{digits}})" if high >= low else f"{text} (any number)"


def _json_lines(file: TextIO, target: Target) -> Write:
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
    return lambda prediction: file.write(encoder.encode(output_record(prediction, target)) + "\n")


@contextmanager
def _parquet_writer(path: Path, target: Target) -> Iterator[Write]:
    import pyarrow as pa  # noqa: PLC0415  (an extra of its own)
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    text, number = pa.string(), pa.float64()
    types = {
        **dict.fromkeys(("probability", "distance", "unusual"), number),
        "top": pa.list_(pa.struct({"label": text, "probability": number})),
        "labels": pa.map_(text, number),
        "numbers": pa.list_(pa.struct({"name": text, "value": number, "unit": text, "interval": pa.list_(number)})),
        "set": pa.list_(text),
    }
    schema = pa.schema({name: types.get(name, text) for name in output_names(target).values()})
    rows: list[dict[str, Any]] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(prediction: Prediction) -> None:
            rows.append(output_record(prediction, target))
            if len(rows) == ROW_GROUP:
                flush()

        yield write
        flush()
