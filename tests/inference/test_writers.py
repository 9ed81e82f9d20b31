"""Every output names the fields of a prediction as it always did, whatever they are called in Python."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from headstart.inference.postprocess import Prediction
from headstart.inference.server import Limits, application
from headstart.inference.writers import csv_rows, text_writer, writing
from headstart.targets.classes import Classes
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import PredictedNumber, Target

CLASSES = Classes(["cat", "dog"])
NAMES = ["picture", "label", "probability", "top", "set", "distance", "unusual", "error"]
CLASS_COLUMNS_FROM_1 = ["label_1", "probability_1", "label_2", "probability_2"]
CLASS_COLUMNS = ["label_2", "probability_2", "label_3", "probability_3"]
TOP = [("cat", 0.75), ("dog", 0.25)]
PREDICTION = Prediction("a.png", "cat", 0.75, TOP, ["cat"], 0.5, 0.95)
VALUES = ["a.png", "cat", 0.75, [list(pair) for pair in TOP], ["cat"], 0.5, 0.95, None]


def test_csv_has_two_columns_for_each_class() -> None:
    file = io.StringIO()
    write = csv_rows(file, CLASSES, 3)
    write(PREDICTION)
    write(Prediction("b.png", error="no image"))
    assert list(csv.reader(file.getvalue().splitlines())) == [
        ["picture", "label", "probability", *CLASS_COLUMNS, "set", "distance", "unusual", "error"],
        ["a.png", "cat", "0.75", "dog", "0.25", "", "", '["cat"]', "0.5", "0.95", ""],
        ["b.png", *[""] * 9, "no image"],
    ]


def test_json_lines_and_parquet(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        with writing(tmp_path / name, CLASSES, 3) as write:
            write(PREDICTION)
    line = json.loads((tmp_path / "rows.jsonl").read_text())
    assert list(line.items()) == list(zip(NAMES, VALUES, strict=True))
    [row] = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert row == line | {"top": [{"label": label, "probability": probability} for label, probability in TOP]}


def test_the_services_description_of_an_answer() -> None:
    config = SimpleNamespace(architecture="a", target=CLASSES, band_files=())
    of_rgb = SimpleNamespace(bands=None)
    predictor: Any = SimpleNamespace(bundle=SimpleNamespace(config=config), preprocessing=of_rgb)
    app = application(predictor, Limits(body_bytes=1, images=1, seconds=1, threads=1))
    assert list(app.openapi()["components"]["schemas"]["Prediction"]["properties"]) == NAMES


NUMBERS = Numbers(["weight", "age"], ["kg", ""], [0, 0], [1, 1])
COUNTED = Prediction(
    "a.png",
    numbers=[PredictedNumber("weight", 71.26, "kg", [65.11, 77.4]), PredictedNumber("age", 1234.5, "", [None, None])],
    ood_distance=0.5,
)
BARE = Prediction("b.png", numbers=[PredictedNumber("weight", 71.26, "kg", None)])
"""As of a checkpoint that nobody evaluated."""
LABELS = Labels(["cat", "dog", "owl"])
LABELLED = Prediction(
    "a.png", labels={"cat": 0.97, "dog": 0.5}, top=[("cat", 0.97), ("dog", 0.5)], prediction_set=["cat"]
)


def test_several_numbers_have_five_columns_each() -> None:
    file = io.StringIO()
    write = csv_rows(file, NUMBERS, 3)
    write(COUNTED)
    write(Prediction("b.png", error="no image"))
    columns = [f"{name}{i}" for i in ("", "_2") for name in ("name", "value", "unit", "low", "high")]
    assert list(csv.reader(file.getvalue().splitlines())) == [
        ["picture", *columns, "distance", "unusual", "error"],
        ["a.png", "weight", "71.26", "kg", "65.11", "77.4", "age", "1234.5", "", "", "", "0.5", "", ""],
        ["b.png", *[""] * 12, "no image"],
    ]


def test_labels_are_an_object_beside_the_likeliest() -> None:
    file = io.StringIO()
    write = csv_rows(file, LABELS, 2)
    write(LABELLED)
    assert list(csv.reader(file.getvalue().splitlines())) == [
        ["picture", "labels", *CLASS_COLUMNS_FROM_1, "set", "distance", "unusual", "error"],
        ["a.png", '{"cat": 0.97, "dog": 0.5}', "cat", "0.97", "dog", "0.5", '["cat"]', "", "", ""],
    ]


def test_json_lines_and_parquet_of_numbers_and_labels(tmp_path: Path) -> None:
    expected: list[tuple[Target, Prediction, dict[str, Any]]] = [
        (
            NUMBERS,
            COUNTED,
            {
                "numbers": [
                    {"name": "weight", "value": 71.26, "unit": "kg", "interval": [65.11, 77.4]},
                    {"name": "age", "value": 1234.5, "unit": "", "interval": [None, None]},
                ],
                "distance": 0.5,
            },
        ),
        (LABELS, LABELLED, {"labels": {"cat": 0.97, "dog": 0.5}, "set": ["cat"], "distance": None}),
    ]
    for target, prediction, fields in expected:
        for name in ("rows.jsonl", "rows.parquet"):
            with writing(tmp_path / name, target, 3) as write:
                write(prediction)
        line = json.loads((tmp_path / "rows.jsonl").read_text())
        top = [[*pair] for pair in prediction.top]
        assert line == {"picture": "a.png", "unusual": None, "error": None} | fields | ({"top": top} if top else {})
        [row] = pq.read_table(tmp_path / "rows.parquet").to_pylist()
        if top:
            row |= {"labels": dict(row["labels"]), "top": [[*each.values()] for each in row["top"]]}
        assert row == line


UNUSUAL = "unusual: farther from the training images than 95% of usual ones"


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        (COUNTED, "a.png  |  weight 71 kg (65 to 77), age 1234.5 (any number)"),
        (BARE, "b.png  |  71.26 kg"),
        (
            Prediction("c.png", numbers=[PredictedNumber("age", 12.41, "years", [8.1, 16.9])]),
            "c.png  |  12.4 years (8.1 to 16.9)",
        ),
        (
            Prediction("d.png", numbers=[PredictedNumber("year", 1987.2, "", [1987.2, 1987.2])]),
            "d.png  |  1987.2 (1987.2 to 1987.2)",
        ),
        (LABELLED, "a.png  |  cat 97.0%, dog (a large one) 50.0%  |  set: cat"),
        (Prediction("e.png", labels={}, top=[("cat", 0.2)], prediction_set=[]), "e.png  |  no label  |  set: empty"),
        (PREDICTION, f"a.png  |  cat 75.0%, dog (a large one) 25.0%  |  set: cat  |  {UNUSUAL}"),
    ],
)
def test_lines_for_people(prediction: Prediction, line: str) -> None:
    file = io.StringIO()
    text_writer(file, {"dog": "a large one"})(prediction)
    assert file.getvalue() == line + "\n"
