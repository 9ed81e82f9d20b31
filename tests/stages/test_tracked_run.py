"""What the tracked run of a fine-tuning shows, read from wandb's offline files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.core import paths
from headstart.core.io import read_json, read_table
from headstart.core.paths import FINETUNE
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from helpers.images import params, write_prepared

EPOCHS, STEPS = 12, 4
CHANGES = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "finetune.epochs": EPOCHS,
    "finetune.early_stopping": {"monitor": "val_loss", "patience": EPOCHS, "min_delta": 0.0},
    "finetune.batch_size": 8,
    "finetune.clip": 1.0,
    "finetune.lr": {"backbone": 0.05, "head": 0.05},
    "run.tracking": "offline",
    "run.cache": "cache",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared({"train": 35, "validation": 21, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)


def history(folder: Path) -> list[dict[str, Any]]:
    """All rows in the offline files of a project's one run, in the files' order, without times."""
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    rows = []
    for file in files:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records = (json.loads(line) for line in printed.splitlines())
        rows += [record["history"]["item"] for record in records if record["type"] == "history"]
    timed = ("seconds", "_runtime", "_timestamp")
    return [{key: value for key, value in row.items() if not key.endswith(timed)} for row in rows]


def test_the_curves_are_those_of_the_reports_and_the_summary_is_the_best_epochs() -> None:
    finetune.run(params(CHANGES).declared(finetune.PARAMS))
    rows = history(Path())
    steps, epochs = ([row for row in rows if ("step" in row) == told] for told in (True, False))
    reported = read_table(paths.HISTORY)[1:]
    assert len(epochs) == len(reported) == EPOCHS
    for row, expected in zip(epochs, reported, strict=True):
        for name in ("train_loss", "penalty", "val_loss", "val_accuracy"):
            assert row[name] == pytest.approx(float(expected[name]), rel=1e-6)
        own = [step for step in steps if step["epoch"] == row["epoch"]]
        assert np.mean([step["step/loss"] for step in own]) == pytest.approx(row["train_loss"], rel=1e-5)
        assert own[-1]["step/lr/head"] == pytest.approx(own[-1]["step/lr/backbone"])
        assert {"backbone/norm", "head/distance"} <= set(row)
    assert all(step["step/gradient_norm"] > 0 for step in steps)
    (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    summary: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    report = read_json(Path("reports/finetune.json"))
    told = {name: summary[f"finetune/{name}"] for name in ("best_epoch", "val_loss", "val_accuracy")}
    assert told == {name: pytest.approx(report[name]) for name in told}
    assert "val_loss" not in summary
    run = next(record["run"] for record in records if record["type"] == "run")
    assert {"finetune", "backbone", "groups", "data_sha256", "weights_sha256", "git", "machine"} <= set(
        run["config"]["update"]
    )
    assert read_json(FINETUNE / "tracking.json") == {"id": run["run_id"]}
