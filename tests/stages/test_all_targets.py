"""Every target through every stage and predict, from a table of images whose brightness tells what is learned."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.core import paths
from headstart.core.io import read_json
from headstart.data.dataset import PreparedDataset, read_values
from headstart.predict import Predictor
from headstart.stages import evaluate, export, features, finetune, prepare, probe
from helpers.images import params

IMAGES = 90
SETTINGS: dict[str, Any] = {
    "prepare.source": "csv:list.csv",
    "prepare.train_scale": 1.0,
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "probe.l2": [1e-2, 1e-4],
    "probe.heads": ["ridge", "knn"],
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "export.formats": ["onnx"],
    "export.pictures": 16,
    "run.cache": "cache",
}
CELLS: dict[str, tuple[list[str], Callable[[int, int], list[Any]]]] = {
    "labels": (["dark", "bright", "even"], lambda level, i: [int(level < 60), int(level >= 100), int(i % 2)]),
    "number": (["level [lux]"], lambda level, _: [level / 2]),
    "grade": (["label"], lambda level, _: [level // 50]),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_target_goes_through_every_stage(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw")
    raw.mkdir(parents=True)
    columns, cells = CELLS[kind]
    generator = np.random.default_rng(0)
    with (raw / "list.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", *columns])
        for i in range(IMAGES):
            level = int(generator.integers(0, 150))
            noise = generator.integers(level, level + 100, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(raw / f"{i}.png")
            table.writerow([f"{i}.png", *cells(level, i)])
    settings = params(SETTINGS | {"prepare.target": kind, "prepare.target_columns": columns})
    for stage in (prepare, features, probe, finetune, evaluate, export):
        stage.run(settings)

    report = read_json(paths.report_of("evaluate"))
    prepared = PreparedDataset.open()
    measures = prepared.target.measures
    # Of numbers the probe is ridge already.
    for model in ("probe", "finetune", "knn", *(["ridge"] if kind != "number" else [])):
        assert set(measures) <= set(report["models"][model])
        assert set(measures) <= set(report["models"][model]["intervals"])
    primary = next(iter(measures))
    # What brightness tells is learned: better than the same for all images would be.
    assert report["models"]["probe"][primary] < 20 if primary == "mae" else report["models"]["probe"][primary] > 0.5
    assert report["verdict"]

    predictor = Predictor(paths.EXPORT)
    test = [Path("data/raw", name) for name in _sources(prepared)]
    answers = list(predictor.predict_many(test))
    assert all(answer.error is None for answer in answers)
    outputs = read_values("test")
    assert len(answers) == len(outputs)


def _sources(prepared: PreparedDataset) -> list[str]:
    with (prepared.folder / "manifest.csv").open(encoding="utf-8") as file:
        return [row["source"] for row in csv.DictReader(file) if row["split"] == "test"]
