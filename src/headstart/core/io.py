"""Every name on disk through which the stages meet, with its reader and its writer.

Names are relative to the project's folder, in which every stage runs. A file or folder appears under its final name
only when it is whole (``atomic_write``).
"""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.core.errors import UserError
from headstart.core.paths import report_of


@contextmanager
def atomic_write(final: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Return a name beside ``final`` to write a file or a folder under; it takes the final name if all went well.

    What is there after a failure is removed, after a kill by the next run; where ``resumable``, it is left to that run.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.partial")
    if not resumable:
        _remove(aside)  # no two runs of a stage write at once, DVC sees to that
    try:
        yield aside
        if final.is_dir():
            _remove(final)
        aside.replace(final)
    finally:
        if not resumable:
            _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read; NaN and infinity are refused."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what ``write_json`` wrote; raises UserError where it is missing."""
    return json.loads(existing(path).read_text(encoding="utf-8"))


def write_report(stage: str, content: dict[str, Any]) -> None:
    """Write ``reports/<stage>.json``, a stage's figures."""
    write_json(report_of(stage), content)


def write_table(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
    """Write a CSV table."""
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a small CSV table whole."""
    with existing(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def existing(path: Path) -> Path:
    """Return the path back; raises UserError where nothing is there."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run `dvc repro`, which makes what a stage reads")
    return path
