"""Predictions written as they come: to a terminal, or to a file of CSV, JSON lines or Parquet."""

import csv
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from headstart.core.errors import UserError, requirement
from headstart.core.io import atomic_write
from headstart.inference.postprocess import Prediction

OUTPUT_NAMES = {
    "image": "picture",
    "label": "label",
    "probability": "probability",
    "top": "top",
    "prediction_set": "set",
    "ood_distance": "distance",
    "ood_level": "unusual",
    "error": "error",
}
"""The name of each field of ``Prediction`` in CSV, JSON, Parquet and the answers of ``headstart serve``."""

ROW_GROUP = 10_000
"""Rows of a Parquet file that are held in memory."""

Write = Callable[[Prediction], object]
OUT_SUFFIXES = (".csv", ".jsonl", ".parquet")


def output_record(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction under the names that all outputs have."""
    return {OUTPUT_NAMES[name]: value for name, value in asdict(prediction).items()}


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
def writing(out: Path, top: int) -> Iterator[Write]:
    """Yield a function that writes a prediction, in CSV with ``top`` classes; the file takes its name at the end.

    ``check_out`` must have passed its name.
    """
    with atomic_write(out) as partial:
        if out.suffix.lower() == ".parquet":
            with _parquet_writer(partial) as write:
                yield write
            return
        with partial.open("w", newline="", encoding="utf-8") as file:
            yield csv_rows(file, top) if out.suffix.lower() == ".csv" else _json_lines(file)


def csv_rows(file: TextIO, top: int) -> Write:
    """Return a function that writes a row of CSV, once the header is written.

    The prediction set is a JSON list; each class of the first ``top`` has two columns of its own.
    """
    writer = csv.writer(file, lineterminator="\n")
    columns = [name for name in OUTPUT_NAMES.values() if name != "top"]
    after_first = columns.index("probability") + 1
    columns[after_first:after_first] = [f"{name}_{i}" for i in range(2, top + 1) for name in ("label", "probability")]
    writer.writerow(columns)

    def write(prediction: Prediction) -> None:
        record = output_record(prediction)
        if record["set"] is not None:
            record["set"] = json.dumps(record["set"], ensure_ascii=False)
        for i, (label, probability) in enumerate(prediction.top[1:], 2):
            record |= {f"label_{i}": label, f"probability_{i}": probability}
        writer.writerow([record.get(name) for name in columns])

    return write


def text_writer(file: TextIO, descriptions: Mapping[str, str]) -> Write:
    """Return a function that writes a line for people to read; control characters are written as their codes."""

    def described(label: str) -> str:
        return f"{label} ({descriptions[label]})" if descriptions.get(label, label) != label else label

    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            parts = [f"error: {prediction.error}"]
        else:
            parts = [", ".join(f"{described(label)} {probability:.1%}" for label, probability in prediction.top)]
            if prediction.prediction_set is not None:
                parts.append(f"set: {', '.join(map(described, prediction.prediction_set)) or 'empty'}")
            if prediction.ood_level is not None:
                parts.append(f"unusual: farther from the training images than {prediction.ood_level:.0%} of usual ones")
        text = "  |  ".join([prediction.image, *parts])
        file.write("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text) + "\n")
        file.flush()

    return write


def _json_lines(file: TextIO) -> Write:
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
    return lambda prediction: file.write(encoder.encode(output_record(prediction)) + "\n")


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Write]:
    import pyarrow as pa  # noqa: PLC0415  (an extra of its own)
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    text, number = pa.string(), pa.float64()
    types = {
        **dict.fromkeys(("probability", "distance", "unusual"), number),
        "top": pa.list_(pa.struct({"label": text, "probability": number})),
        "set": pa.list_(text),
    }
    schema = pa.schema({name: types.get(name, text) for name in OUTPUT_NAMES.values()})
    rows: list[dict[str, Any]] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(prediction: Prediction) -> None:
            rows.append(output_record(prediction))
            if len(rows) == ROW_GROUP:
                flush()

        yield write
        flush()
