"""Every output names the fields of a prediction as it always did, whatever they are called in Python."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from headstart.inference.postprocess import Prediction
from headstart.inference.server import Limits, application
from headstart.inference.writers import csv_rows, writing
from headstart.targets.classes import Classes

CLASSES = Classes(["cat", "dog"])
NAMES = ["picture", "label", "probability", "top", "set", "distance", "unusual", "error"]
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
    predictor: Any = SimpleNamespace(bundle=SimpleNamespace(config=SimpleNamespace(architecture="a", target=CLASSES)))
    app = application(predictor, Limits(body_bytes=1, images=1, seconds=1, threads=1))
    assert list(app.openapi()["components"]["schemas"]["Prediction"]["properties"]) == NAMES
