"""Predictions written as they come: to a terminal, or into a file of CSV, JSON lines or Parquet."""

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

ROWS = 10_000
"""Of one row group of a Parquet file: what is held in memory."""

Write = Callable[[Prediction], None]
FORMATS = (".csv", ".jsonl", ".parquet")


def check_out(out: Path) -> None:
    """Raise UserError where predictions can't be written to a file of this name."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: its name must end in one of {', '.join(FORMATS)}, which says what is written")
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
    """Return what writes a prediction; the file takes its name when all went well.

    Args:
        out: a name that ``check_out`` passed.
        top: how many classes a row of CSV has.
    """
    with atomic_write(out) as aside:
        if out.suffix.lower() == ".parquet":
            with _parquet(aside) as write:
                yield write
            return
        with aside.open("w", newline="", encoding="utf-8") as file:
            yield csv_rows(file, top) if out.suffix.lower() == ".csv" else _json_lines(file)


def csv_rows(file: TextIO, top: int) -> Write:
    """Write CSV with a header; ``set`` is a JSON list, and each class after the first has two columns of its own."""
    writer = csv.writer(file, lineterminator="\n")
    further = [f"{column}_{i}" for i in range(2, top + 1) for column in ("label", "probability")]
    writer.writerow(["picture", "label", "probability", *further, "set", "distance", "unusual", "error"])

    def write(found: Prediction) -> None:
        others: list[Any] = [each for pair in found.top[1:] for each in pair]
        others += [""] * (len(further) - len(others))
        members = None if found.set is None else json.dumps(found.set, ensure_ascii=False)
        rest = (members, found.distance, found.unusual, found.error)
        writer.writerow([found.image, found.label, found.probability, *others, *rest])

    return write


def text_writer(file: TextIO, descriptions: Mapping[str, str]) -> Write:
    """Write a line for people to read; what could steer a terminal is shown as its code."""

    def named(label: str) -> str:
        return f"{label} ({descriptions[label]})" if descriptions.get(label, label) != label else label

    def write(found: Prediction) -> None:
        if found.error is not None:
            parts = [f"error: {found.error}"]
        else:
            parts = [", ".join(f"{named(label)} {probability:.1%}" for label, probability in found.top)]
            if found.set is not None:
                parts.append(f"set: {', '.join(map(named, found.set)) or 'empty'}")
            if found.unusual is not None:
                parts.append(f"unusual: farther from the training images than {found.unusual:.0%} of usual ones")
        text = "  |  ".join([found.image, *parts])
        file.write("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text) + "\n")
        file.flush()

    return write


def _json_lines(file: TextIO) -> Write:
    def write(found: Prediction) -> None:
        file.write(json.dumps(asdict(found), ensure_ascii=False, allow_nan=False) + "\n")

    return write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa  # noqa: PLC0415  (an extra of its own)
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

    classes = pa.list_(pa.struct({"label": pa.string(), "probability": pa.float64()}))
    columns = {"picture": pa.string(), "label": pa.string(), "probability": pa.float64(), "top": classes}
    columns |= {"set": pa.list_(pa.string()), "distance": pa.float64(), "unusual": pa.float64(), "error": pa.string()}
    schema = pa.schema(columns)
    rows: list[dict[str, Any]] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(found: Prediction) -> None:
            top = [{"label": label, "probability": probability} for label, probability in found.top]
            rows.append(asdict(found) | {"top": top})
            if len(rows) == ROWS:
                flush()

        yield write
        flush()
