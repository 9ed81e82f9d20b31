"""Targets in tables as people write them: what is read, and what is refused in one line."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.paths import PREPARED
from headstart.data.dataset import SPLITS, PreparedDataset, read_values
from headstart.stages import prepare
from helpers.images import params

IMAGES = 30


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("data/raw")
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(generator.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def write_table(header: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    with Path("data/raw/list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", *header])
        writer.writerows([f"{i}.png", *row] for i, row in enumerate(rows))


def run(kind: str, columns: list[str] | None = None, **changes: Any) -> PreparedDataset:
    changed = {"prepare.source": "csv:list.csv", "prepare.target": kind, "prepare.target_columns": columns}
    changed |= {f"prepare.{key}": value for key, value in changes.items()}
    prepare.run(params(changed | {"backbone.image_size": 32, "prepare.train_scale": 1.0}))
    return PreparedDataset.open()


def all_values(prepared: PreparedDataset) -> list[Any]:
    values: list[Any] = [None] * len(prepared.ids)
    names = [Path(source).stem for source in sources(prepared)]
    for split in SPLITS:
        for row, value in zip(prepared.rows(split), read_values(split), strict=True):
            values[int(names[row])] = value.tolist()
    return values


def sources(prepared: PreparedDataset) -> list[str]:
    with (prepared.folder / "manifest.csv").open(encoding="utf-8") as file:
        return [row["source"] for row in csv.DictReader(file)]


def numbers() -> list[list[Any]]:
    return [[i % 10 + 0.5] for i in range(IMAGES)]


def test_numbers_with_units_and_unknown_ones(caplog: pytest.LogCaptureFixture) -> None:
    rows = [[i, -i / 2 if i % 5 else ""] for i in range(IMAGES)]
    write_table(["weight [kg]", "depth"], rows, delimiter=";")
    with caplog.at_level("INFO"):
        prepared = run("number", ["weight", "depth"])
    empty = sum(row[1] == "" for row in rows)
    assert f"empty cells, which are unknown: depth {empty:,}" in caplog.messages
    report = read_json(paths.report_of("prepare"))
    assert report["unknown"] == {"depth": empty}
    assert all(part.startswith("weight ") for part in report["per_class"])  # the number with the fewest empty cells
    assert prepared.target.names == ["weight", "depth"]
    assert prepared.target.units == ["kg", ""]
    for i, (weight, depth) in enumerate(all_values(prepared)):
        assert weight == i
        assert depth == -i / 2 if i % 5 else np.isnan(depth)
    known = read_values("train")[:, 0]
    assert prepared.target.spec()["mean"][0] == pytest.approx(known.mean())
    assert prepared.target.spec()["scale"][0] == pytest.approx(known.std())


def test_labels_of_columns_and_of_a_list_are_the_same() -> None:
    of_image = [["a"], ["b", "c"], [], ["a", "b", "c"], ["c"]]
    rows = [of_image[i % 5] for i in range(IMAGES)]
    write_table(["tags"], [["; ".join(row)] for row in rows])
    prepared = run("labels", ["tags"])
    listed = all_values(prepared)
    assert prepared.classes == ["a", "b", "c"]
    assert listed == [[float(name in row) for name in "abc"] for row in rows]
    write_table(["a", "b", "c"], [[int(name in row) for name in "abc"] for row in rows])
    assert all_values(run("labels", ["a", "b", "c"])) == listed
    assert read_json(paths.report_of("prepare"))["unknown"] == {}


def test_empty_cells_of_labels_are_unknown_and_every_split_has_each_label() -> None:
    rows = [[i % 2, "" if i % 3 == 0 else int(i % 3 == 1)] for i in range(IMAGES)]
    write_table(["a", "b"], rows)
    prepared = run("labels", ["a", "b"])
    for (a, b), row in zip(all_values(prepared), rows, strict=True):
        assert a == row[0]
        assert b == row[1] if row[1] != "" else np.isnan(b)
    for split in SPLITS:
        assert (np.nansum(read_values(split), axis=0) > 0).all()


def test_grades_are_in_the_order_given_or_of_their_numbers() -> None:
    names = ["none", "mild", "severe"]
    write_table(["label"], [[names[i % 3]] for i in range(IMAGES)])
    prepared = run("grade", grades=names)
    assert prepared.classes == names
    assert all_values(prepared) == [i % 3 for i in range(IMAGES)]
    write_table(["label"], [[f"{(9, 10, -1)[i % 3]}.0"] for i in range(IMAGES)])
    prepared = run("grade")
    assert prepared.classes == ["-1", "9", "10"]
    assert all_values(prepared) == [(1, 2, 0)[i % 3] for i in range(IMAGES)]


def test_digits_are_numbers_and_grades_too() -> None:
    changes = {"prepare.source": "digits", "backbone.image_size": 32, "prepare.train_scale": 1.0}
    prepare.run(params(changes | {"prepare.target": "number"}))
    assert PreparedDataset.open().target.kind == "number"
    assert set(np.unique(read_values("train"))) == set(range(10))


def test_other_columns_are_metadata() -> None:
    write_table(["age", "site"], [[i, f"s{i % 2}"] for i in range(IMAGES)])
    run("number", ["age"])
    with (PREPARED / "manifest.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row["site"] in ("s0", "s1")
    assert json.loads(row["label"]) == int(Path(row["source"]).stem)


BAD_NUMBERS = {
    "12,5": r"a comma in a number \(line 5, age, '12,5'\): write a point",
    "1,234.5": r"commas between thousands \(line 5, age, '1,234\.5'\)",
    "1.234,5": "a comma for the point",
    "1 234": "thousands kept apart",
    "2024-05-01": r"a date \(line 5, age, '2024-05-01'\): write a number, such as days",
    "01/05/2024": "a date",
    "1.5.2024 10:30": "a date",
    "10:30": "a time",
    "inf": "an infinite number",
    "-Infinity": "an infinite number",
    "1e999": "an infinite number",
    "1e31": "a number that is too large",
    "NaN": r"no number .*: leave the cell empty where the value is unknown",
    "n/a": "no number .*leave the cell empty",
    "?": "no number .*leave the cell empty",
    "-": "no number .*leave the cell empty",
    "unknown": "no number .*leave the cell empty",
    "12 kg": r"a unit \(line 5, age, '12 kg'\): write the number alone",
    "12kg": "a unit",
    "37%": "a unit",
    "€ 5": "a unit",
    "$5": "a unit",
    "<5": "a range",
    "~5": "a range",
    "3-5": "a range",
    "3 to 5": "a range",
    "5±1": "a range",
    "five": r"no number \(line 5, age, 'five'\): write a number",
    "True": "no number",
    "1_000": "thousands kept apart",
    "0x1F": "a unit|no number",
    "#DIV/0!": "an infinite number",
    "#N/A": "no number",
    "": "no number is known",
    "  ": "no number is known",
}


@pytest.mark.parametrize("cell", BAD_NUMBERS)
def test_a_bad_number_is_named_with_its_row(cell: str) -> None:
    rows = numbers()
    rows[3] = [cell]
    write_table(["age"], rows, delimiter=";")
    with pytest.raises(UserError, match="1 bad images:") as error:
        run("number", ["age"])
    (line,) = re.findall(r"\n  3\.png: (.*)", str(error.value))
    assert re.match(BAD_NUMBERS[cell], line), line


@pytest.mark.parametrize("cell", ["2", "-1", "x", "0.5", "maybe", "NA", "1,0"])
def test_what_is_neither_0_nor_1_is_named_with_its_row(cell: str) -> None:
    rows: list[list[Any]] = [[i % 2, (i + 1) % 2] for i in range(IMAGES)]
    rows[3][1] = cell
    write_table(["a", "b"], rows)
    with pytest.raises(UserError, match=rf"3\.png: neither 0 nor 1 \(line 5, b, '{re.escape(cell)}'\): "):
        run("labels", ["a", "b"])


def test_many_bad_numbers_are_counted_by_what_they_are() -> None:
    write_table(["age"], [[f"{i},5"] for i in range(IMAGES)], delimiter=";")
    with pytest.raises(UserError, match=r"and 10 more, in all 30 x a comma in a number|and 10 more: all are in"):
        run("number", ["age"])


REFUSED: dict[str, tuple[str, list[str], list[list[Any]], dict[str, Any], str]] = {
    "no such column": (
        "number",
        ["age"],
        [[i] for i in range(IMAGES)],
        {"columns": ["weight"]},
        r"no column weight \(the columns are path, age\): name yours in prepare\.target_columns$",
    ),
    "twice": ("number", ["age", "age"], [[i, i] for i in range(IMAGES)], {}, "two columns have one name, age"),
    "constant": ("number", ["age"], [[5]] * IMAGES, {}, "age is 5 in all training images"),
    "one unknown everywhere": (
        "number",
        ["age", "size"],
        [[i, ""] for i in range(IMAGES)],
        {"columns": ["age", "size"]},
        "size is known of no training image",
    ),
    "another separator": (
        "labels",
        ["tags"],
        [["a|b"] if i % 2 else ["b|c"] for i in range(IMAGES)],
        {},
        r"prepare\.label_separator: no cell of the column tags has ';', and 30 have '\|'",
    ),
    "commas": (
        "labels",
        ["tags"],
        [["a,b"] if i % 2 else ["b,c"] for i in range(IMAGES)],
        {},
        r"no cell of the column tags has ';', and 30 have ','",
    ),
    "a single label": ("labels", ["tags"], [["a"]] * IMAGES, {}, "there is a single label, 'a'"),
    "no label": ("labels", ["tags"], [[""]] * IMAGES, {}, "no image has a label"),
    "case": (
        "labels",
        ["tags"],
        [["Cat; dog"] if i % 2 else ["cat; dog"] for i in range(IMAGES)],
        {},
        r"the labels 'Cat', 'cat' differ in case alone: .*prepare\.label_case: fold",
    ),
    "positive nowhere": (
        "labels",
        ["a", "b"],
        [[i % 2, 0] for i in range(IMAGES)],
        {"columns": ["a", "b"]},
        "no training image of 'b'; add some or remove the label",
    ),
    "positive everywhere": (
        "labels",
        ["a", "b"],
        [[i % 2, 1] for i in range(IMAGES)],
        {"columns": ["a", "b"]},
        "what is in every training image can't be learned: 'b'",
    ),
    "unordered": (
        "grade",
        ["label"],
        [["mild"] if i % 2 else ["severe"] for i in range(IMAGES)],
        {},
        r"prepare\.grades: 'mild', 'severe' are no numbers, so their order is unknown",
    ),
    "grade without images": (
        "grade",
        ["label"],
        [["mild"] if i % 2 else ["severe"] for i in range(IMAGES)],
        {"grades": ["none", "mild", "severe"]},
        r"prepare\.grades: no image has the grade 'none'",
    ),
    "unknown grade": (
        "grade",
        ["label"],
        [[("mild", "severe", "sever")[min(i % 3, 2)]] for i in range(IMAGES)],
        {"grades": ["mild", "severe"]},
        r"none of prepare\.grades \(line 4, label, 'sever'\): these are mild, severe",
    ),
    "no grade": ("grade", ["label"], [[i % 3 if i else ""] for i in range(IMAGES)], {}, r"no grade \(line 2, label\)"),
    "a number for a grade": (
        "grade",
        ["label"],
        [[i + 0.5 * j] for i in range(IMAGES) for j in range(1)],
        {},
        "a class needs 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_learned_is_refused(case: str) -> None:
    kind, header, rows, changes, message = REFUSED[case]
    write_table(header, rows)
    columns = changes.pop("columns", None) or (header[:1] if header[0] != "label" else None)
    with pytest.raises(UserError, match=message):
        run(kind, columns, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepare.target": "number", "prepare.target_columns": ["a", "a"]}, "target_columns: 'a' stands there twice"),
        ({"prepare.target": "grade", "prepare.target_columns": ["a", "b"]}, "a grade is in one column, not in 2"),
        ({"prepare.target": "class", "prepare.grades": ["a", "b"]}, "only target: grade has an order"),
        ({"prepare.target": "grade", "prepare.grades": ["a", "a"]}, "name each grade once"),
        ({"prepare.target": "regression"}, "prepare.target"),
        ({"prepare.source": "digits", "prepare.target_columns": ["a"]}, "digits has no columns to be named"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare.run(params(changes))


def test_a_stand_in_for_unknown_is_told(caplog: pytest.LogCaptureFixture) -> None:
    write_table(["age"], [[-999 if i % 6 == 0 else i] for i in range(IMAGES)])
    run("number", ["age"])
    assert re.search(r"age is -999 in \d training images, far from all others: leave such cells empty", caplog.text)
