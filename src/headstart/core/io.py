"""Reading and writing of files; a file or folder has its final name only when it is whole."""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.core.errors import UserError
from headstart.core.paths import report_of
from headstart.core.storage import storage_errors


@contextmanager
def atomic_write(final: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``final`` for a file or a folder, and rename it to ``final`` if nothing was raised.

    What a failure leaves there is removed at once, what a kill leaves is removed by the next run.

    Args:
        final: the path that readers know.
        resumable: keep what a failure or a kill leaves, for the next run to continue.

    Raises:
        OSError: the disk is full or can't be written, whatever the library raised that met it; it has the path.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.partial")
    if not resumable:
        _remove(partial)  # nobody else writes it: DVC runs one stage at a time
    try:
        with storage_errors(final):
            yield partial
            if final.is_dir():
                _remove(final)
            partial.replace(final)
    finally:
        if not resumable:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; raises ValueError at NaN and infinity."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises UserError where it is missing."""
    return json.loads(existing(path).read_text(encoding="utf-8"))


def write_report(stage: str, content: dict[str, Any]) -> None:
    """Write a stage's figures to ``reports/<stage>.json``."""
    write_json(report_of(stage), content)


def write_table(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
    """Write a CSV table."""
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def table_rows(path: Path) -> Iterator[dict[str, str]]:
    """Stream a CSV table; raises UserError where it is missing."""
    with existing(path).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table into memory; raises UserError where it is missing."""
    return list(table_rows(path))


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder and remove it with all in it; what a kill leaves is removed by the next use of this path."""
    _remove(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        _remove(path)


def existing(path: Path) -> Path:
    """Return the path; raises UserError where nothing is there."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run `dvc repro`, which makes what a stage reads")
    return path
