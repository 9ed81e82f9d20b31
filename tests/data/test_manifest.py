"""The manifest: typed columns in Parquet, the same rows as CSV for small sets, one hash of both."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from headstart.core.errors import UserError
from headstart.data import manifest
from headstart.data.manifest import MANIFEST_COLUMNS, manifest_column, manifest_rows, sources_and_splits, write_manifest


def rows(count: int) -> list[list[Any]]:
    return [
        [
            *(f"{i:016x}", f"a/ä,{i}.png", "a", "train", "", hashlib.sha256(bytes([i])).hexdigest()),
            *(640, 480, "f" * 16, 2.5, f'site "{i}"'),
        ]
        for i in range(count)
    ]


def as_dicts(count: int) -> list[dict[str, Any]]:
    return [dict(zip((*MANIFEST_COLUMNS, "site"), row, strict=True)) for row in rows(count)]


@pytest.mark.parametrize("rows_in_memory", [3, 100])
def test_rows_are_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_in_memory: int
) -> None:
    monkeypatch.setattr(manifest, "ROWS", rows_in_memory)
    written = write_manifest(tmp_path, ["site"], iter(rows(8)), 8)
    assert list(manifest_rows(tmp_path)) == as_dicts(8)
    assert hashlib.sha256((tmp_path / "manifest.csv").read_bytes()).hexdigest() == written
    (tmp_path / "manifest.parquet").unlink()
    with (tmp_path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        assert list(manifest_rows(tmp_path)) == list(csv.DictReader(file))  # as earlier versions wrote it


def test_columns_have_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROWS", 3)
    write_manifest(tmp_path, ["site"], rows(8), 8)
    types = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(tmp_path / "manifest.parquet")}
    assert types["id"] == types["phash"] == "uint64"
    assert types["width"] == types["height"] == "uint32"
    assert (types["contrast"], types["site"]) == ("double", "string")
    ids, content, sites = (np.concatenate(list(manifest_column(name, tmp_path))) for name in ("id", "sha256", "site"))
    assert ids.tolist() == list(range(8))
    assert [each.tobytes().hex() for each in content] == [row[5] for row in rows(8)]
    assert sites.tolist() == [row[-1] for row in rows(8)]


def test_of_a_large_data_set_there_is_no_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_manifest(tmp_path, ["site"], rows(8), 8)
    (tmp_path / "manifest.csv").unlink()
    monkeypatch.setattr(manifest, "MOST_IN_CSV", 7)
    assert write_manifest(tmp_path, ["site"], rows(8), 8) == small
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]
    assert list(manifest_rows(tmp_path)) == as_dicts(8)


@pytest.mark.parametrize("place", [40, -200, -4])
def test_a_damaged_manifest_is_named(tmp_path: Path, place: int) -> None:
    write_manifest(tmp_path, ["site"], rows(8), 8)
    path = tmp_path / "manifest.parquet"
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.parquet is damaged .*dvc checkout --force"):
        list(manifest_rows(tmp_path))


def test_an_absent_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.csv does not exist: run `dvc repro`"):
        list(manifest_rows(tmp_path))


def test_some_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROWS", 3)
    written = rows(8)
    written[7][3] = "test"
    write_manifest(tmp_path, ["site"], written, 8)
    found = sources_and_splits({0, 7, 2, 3}, tmp_path)
    assert found == {row: (f"a/ä,{row}.png", "test" if row == 7 else "train") for row in (0, 2, 3, 7)}
    assert sources_and_splits([], tmp_path) == {}
