"""Parquet files with the images in them, as the library ``datasets`` and the Hugging Face hub write them.

Source: `the type Image <https://huggingface.co/docs/datasets/about_dataset_features>`_: a column of ``{bytes, path}``,
or of bytes alone, beside a column of labels; the names of a ClassLabel are in the schema's metadata.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from headstart.core.errors import UserError, first_line
from headstart.core.problems import some
from headstart.data.archives import Archives, ArchiveSource
from headstart.data.dataset import Split
from headstart.data.manifest import MANIFEST_COLUMNS
from headstart.data.names import split_of
from headstart.data.source_item import SourceItem
from headstart.images.decode import BadImageError
from headstart.targets.cells import CellError
from headstart.targets.target import MakeReader

KINDS = ("Image", "ClassLabel")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
BATCH = 32  # images of a row group that are in memory at once


class ParquetFiles(ArchiveSource):
    """Parquet files; an image is named ``FILE/ROW``. Columns of text and whole numbers are kept in the manifest."""

    def __init__(
        self,
        archives: Archives,
        columns: Mapping[str, str],
        target_columns: Sequence[str] | None,
        make_reader: MakeReader,
        split_folders: Mapping[str, str] | None,
    ) -> None:
        """Read the columns of the first file; raises UserError if it is unclear which they are."""
        super().__init__(archives, split_folders)
        with self._open(self._names[0]) as file:
            targets = self._choose_columns(self._names[0], file.schema_arrow, dict(columns), target_columns)
            self.reader = make_reader(targets)
            self._check_targets(self._names[0], file.schema_arrow)

    def _items(self, name: str, split: Split | None) -> Iterator[SourceItem]:
        """Yield a file's images; raises UserError if it is damaged, or has other columns than the first."""
        with self._open(name) as file:
            missing = [column for column in (self._image, *self._read) if column not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{name} has no column {missing[0]}, unlike {self._names[0]}: narrow the pattern")
            batches = file.iter_batches(columns=self._read)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for row, values in enumerate(rows):
                yield self._item(f"{name}/{row:07d}", values, split)

    def read(self, source: str) -> bytes:
        """Read one image; raises BadImageError if its row is empty, and UserError if the file can't be read.

        Rows that follow each other are read in one pass, of which few images are in memory.
        """
        name, _, number = source.rpartition("/")
        row = int(number)
        if self._opened is None or not self._opened.is_before(name, row):
            self._close()
            self._opened = _Cursor(name, row, self._archives, self._image)
        with _arrow_errors(name):
            value = self._opened.value(row)
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            path = value.get("path") if isinstance(value, dict) else None
            raise BadImageError(f"its row holds no bytes, only the path {path}" if path else "its row is empty")
        return bytes(content)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415  (an extra)

        with _arrow_errors(name), self._archives.open(name) as file, ParquetFile(file) as parquet:
            yield parquet

    def _choose_columns(
        self, name: str, schema: Any, columns: dict[str, str], target_columns: Sequence[str] | None
    ) -> Sequence[str]:
        """Find out which columns are what, and return those of the target; raises UserError."""
        if target_columns is not None:
            columns["label"] = target_columns[0]
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata.get("info", {}).get("features", {})
        told = {kind: [key for key in schema.names if _type_of(features.get(key)) == kind] for kind in KINDS}
        candidates = {
            "image": told["Image"] or [field.name for field in schema if _is_bytes(field.type)],
            "label": told["ClassLabel"] or [key for key in schema.names if key.casefold() in LABEL_COLUMNS],
        }
        for what, found in candidates.items():
            if what not in columns and len(found) != 1:
                raise UserError(
                    f"prepare.source: {name}: {some(found) if found else 'no column'} could be the {what}; its columns "
                    f"are {some(schema.names)}: name one by prepare.columns: {{{what}: …}}"
                )
            columns.setdefault(what, found[0] if found else "")
        if "split" in schema.names:
            columns.setdefault("split", "split")
        targets = target_columns or [columns["label"]]
        self._check_columns(name, schema, columns, targets)
        self._columns, self._image = columns, columns["image"]
        self._classes = {column: names for column in targets if (names := _class_names(features.get(column)))}
        taken = {*columns.values(), *targets, *MANIFEST_COLUMNS}
        self.metadata_columns = [field.name for field in schema if field.name not in taken and _is_plain(field.type)]
        others = (column for what, column in columns.items() if what not in ("image", "label"))
        self._read = [*targets, *others, *self.metadata_columns]
        return targets

    @staticmethod
    def _check_columns(name: str, schema: Any, columns: Mapping[str, str], targets: Sequence[str]) -> None:
        """Raise UserError where a column is not there, or holds something else."""
        if unknown := [column for column in (*columns.values(), *targets) if column not in schema.names]:
            raise UserError(f"prepare.columns: {name} has no column {unknown[0]}; it has {some(schema.names)}")
        if not _is_bytes(schema.field(columns["image"]).type):
            raise UserError(f"prepare.columns: the column {columns['image']} of {name} holds no images, as bytes")
        for what in ("split", "group"):
            if what in columns and not _is_plain(schema.field(columns[what]).type):
                kind = schema.field(columns[what]).type
                raise UserError(f"prepare.columns: {columns[what]} of {name} can't be the {what}: it holds {kind}")

    def _check_targets(self, name: str, schema: Any) -> None:
        """Raise UserError where a column can't have the target."""
        for column in self.reader.columns:
            kind = schema.field(column).type
            if _is_bytes(kind) or (self.reader.is_name and not _is_plain(kind)):
                raise UserError(f"prepare.columns: {column} of {name} can't be the label: it holds {kind}")

    def _item(self, source: str, values: dict[str, Any], given: Any) -> SourceItem:
        cells = [self._named(source, column, values[column]) for column in self.reader.columns]
        label = problem = None
        if any(cell is not None for cell in cells):
            try:
                label = self.reader.read(cells)
            except CellError as error:
                problem = str(error)
        if "split" in self._columns:
            said = values[self._columns["split"]]
            given = split_of(str(said))
            if given is None:
                raise UserError(f"{source}: unknown split {said!r}")
        group = values[self._columns["group"]] if "group" in self._columns else None
        metadata = tuple("" if values[name] is None else str(values[name]) for name in self.metadata_columns)
        return SourceItem(source, label, given, None if group is None else str(group), metadata, problem)

    def _named(self, source: str, column: str, cell: Any) -> Any:
        """Return a cell with the names of classes for their numbers; raises UserError for a number without a name."""
        if isinstance(cell, list):
            return [self._named(source, column, each) for each in cell]
        names = self._classes.get(column)
        if names is None or not isinstance(cell, int):
            return cell
        if not -1 <= cell < len(names):
            raise UserError(f"{source}: the label {cell} is none of the {len(names)} classes' numbers")
        return names[cell] if cell >= 0 else None  # as the hub marks what has no label


def _is_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is that of a file's content."""
    from pyarrow import types  # noqa: PLC0415  (an extra)

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return any(test(kind) for test in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _is_plain(kind: Any) -> bool:
    """Return whether an Arrow type is text or a whole number, in a dictionary or not."""
    from pyarrow import types  # noqa: PLC0415  (an extra)

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_integer))


def _type_of(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel, or of a list of them; None of anything else."""
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    return feature.get("names") if isinstance(feature, dict) else None


class _Cursor:
    """Reads the rows of one column of one row group, forwards."""

    def __init__(self, name: str, row: int, archives: Archives, column: str) -> None:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415  (an extra)

        with _arrow_errors(name):
            self.file = archives.open(name)
            file = ParquetFile(self.file)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            ends = np.cumsum(groups)
            if row >= ends[-1]:
                raise UserError(f"{name} has changed: run `headstart prepare` again")
            group = int(np.searchsorted(ends, row, side="right"))
            self._name, self._end = name, int(ends[group])
            self._start = self._end - groups[group]
            self._batches = file.iter_batches(BATCH, row_groups=[group], columns=[column], use_threads=False)
            self._values: Any = ()

    def is_before(self, name: str, row: int) -> bool:
        return name == self._name and self._start <= row < self._end

    def value(self, row: int) -> Any:
        while row >= self._start + len(self._values):
            self._start += len(self._values)
            self._values = next(self._batches).column(0)
        return self._values[row - self._start].as_py()


@contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into UserError."""
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{name} is no Parquet file, or damaged: {first_line(error)}: copy it again") from error
