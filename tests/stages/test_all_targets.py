"""Every target through every stage, predict and DVC's plots, from images whose brightness tells what is learned."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import read_json
from headstart.data.dataset import PreparedDataset, read_values
from headstart.predict import Predictor
from headstart.stages import evaluate, export, features, finetune, prepare, probe
from helpers.images import ROOT, params

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
    "grade": (["label"], lambda level, _: [["none", "mild", "severe"][level // 50]]),
    "class": (["label"], lambda level, _: [["dark", "grey", "bright"][level // 50]]),
}

CHARTS: dict[str, list[str]] = {
    "class": ["cross-entropy", "accuracy"],
    "labels": ["binary cross-entropy", "mean AP", "macro F1", "micro F1", "AUROC", "subset accuracy", "log loss"],
    "number": ["loss, standardised", "MAE [lux]", "RMSE [lux]", "R²", "Spearman"],
    "grade": [
        "cross-entropy of thresholds", "quadratic kappa", "MAE [grades]", "accuracy", "within one grade", "macro F1",
        "log loss",
    ],
}  # fmt: skip
"""What is drawn of each epoch."""
CONFUSED = {
    "class": ["dark", "grey", "bright"],
    "labels": ["dark", "bright", "even", "(none)"],
    "grade": ["0 none", "1 mild", "2 severe"],
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
    grades = {"prepare.grades": ["none", "mild", "severe"]} if kind == "grade" else {}
    settings = params(SETTINGS | {"prepare.target": kind, "prepare.target_columns": columns} | grades)
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
    check_plots(settings, kind)


def check_plots(settings: Params, kind: str) -> None:
    """By a DVC of its own process, since it is DVC that must draw them; nothing in Headstart imports it."""
    dvc("init", "--no-scm", "-q")
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    YAML().dump(settings.record(), Path("params.yaml"))
    plots = json.loads(dvc("plots", "show", "--json"))
    assert "errors" not in plots
    points = {name.rpartition("/")[2]: plot["content"]["data"]["values"] for name, (plot,) in plots["data"].items()}
    assert list(dict.fromkeys(each["chart"] for each in points["curves.csv"])) == CHARTS[kind]
    for chart in CHARTS[kind]:
        assert [each["epoch"] for each in points["curves.csv"] if each["chart"] == chart][-3:] == ["0", "1", "2"]
    said = {name for each in points["confusion_finetune.csv"] for name in (each["actual"], each["predicted"])}
    assert said <= set(CONFUSED[kind]) if kind in CONFUSED else min(said).startswith("0: below ")


def dvc(*arguments: str) -> str:
    """Return what DVC prints; it must not warn."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _sources(prepared: PreparedDataset) -> list[str]:
    with (prepared.folder / "manifest.csv").open(encoding="utf-8") as file:
        return [row["source"] for row in csv.DictReader(file) if row["split"] == "test"]
