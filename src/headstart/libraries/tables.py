"""Pictures that a CSV table lists."""

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path

from headstart.ground.artifacts import MANIFEST_COLUMNS, SPLITS
from headstart.ground.errors import UserError
from headstart.libraries.sources import SPLIT_NAMES, Files, Picture


class CsvTable(Files):
    """A table with the columns path and label, and if there are any split, group and others, which are kept.

    Paths are relative to the folder and stay inside it: DVC watches that folder, and no other.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Read the header; raises UserError where the file or a column is missing."""
        super().__init__(root)
        self.name = name
        self.header = next(self._lines(), (0, []))[1]
        missing = [column for column in ("path", "label") if column not in self.header]
        if missing:
            raise UserError(
                f"{root / name}: no column {' and no column '.join(missing)} (the columns are {', '.join(self.header)})"
            )
        if len(set(self.header)) < len(self.header):
            raise UserError(f"{root / name}: two columns have one name")
        self.further_columns = [column for column in self.header if column not in ("path", "label", "split", "group")]
        clash = [column for column in self.further_columns if column in MANIFEST_COLUMNS]
        if clash:
            raise UserError(
                f"{root / name}: rename the column {clash[0]!r}: the manifest has one of its own with this name"
            )

    def pictures(self) -> Iterator[Picture]:
        """List the pictures; raises UserError naming the line that is wrong."""
        lines = self._lines()
        next(lines)
        whether_split: bool | None = None
        for number, values in lines:
            where = f"{self.root / self.name}, line {number}"
            if len(values) != len(self.header):
                raise UserError(f"{where}: {len(values)} values for {len(self.header)} columns")
            row = dict(zip(self.header, values, strict=True))
            picture = self._picture(row, where)
            if whether_split is None:
                whether_split = picture.split is not None
            elif whether_split != (picture.split is not None):
                raise UserError(
                    f"{where}: the split is {'missing' if whether_split else 'given'}, unlike before: "
                    "give it everywhere or nowhere"
                )
            yield picture

    def _picture(self, row: dict[str, str], where: str) -> Picture:
        path, split = posixpath.normpath(row["path"]), row.get("split", "")
        if not row["path"] or not row["label"]:
            raise UserError(f"{where}: the {'label' if row['path'] else 'path'} is empty")
        if path.startswith(("/", "../")) or path == "..":
            raise UserError(
                f"{where}: {row['path']} is not inside {self.root}, the folder that DVC watches: "
                "write it relative to that folder, and move the picture or prepare.path"
            )
        if split and split not in SPLIT_NAMES:
            raise UserError(f"{where}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        further = tuple(row[column] for column in self.further_columns)
        return Picture(path, row["label"], SPLIT_NAMES.get(split), row.get("group") or None, further)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Read the table's rows, each with the number of its line; empty lines are passed over."""
        path = self.root / self.name
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                for values in reader:
                    if values:
                        yield reader.line_num, values
        except FileNotFoundError:
            raise UserError(
                f"prepare.source: {path} does not exist (the file's name is relative to prepare.path)"
            ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a CSV table in UTF-8: {error}") from error
