"""`headstart tune` on a small model and invented images, in this process: DVC's stages are called directly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file

from headstart.config.loader import load_params
from headstart.core import paths
from headstart.core.io import read_json
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from headstart.tuning import tune as tuning
from headstart.tuning.halving import Try
from headstart.tuning.state import SearchFolder
from helpers.images import params, write_prepared

SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "run.cache": "cache",
    "finetune.epochs": 4,
    "finetune.batch_size": 8,
    "finetune.early_stopping.patience": 9,
}
LONG = 1e6


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared({"train": 35, "validation": 13, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    write_params({})
    monkeypatch.setattr(tuning, "repro", repro)


def write_params(changes: dict[str, Any]) -> None:
    with Path("params.yaml").open("w") as file:
        YAML().dump(params({**SMALL, **changes}).record(), file)


def repro(stages: list[str]) -> int:
    if stages == ["finetune"]:
        finetune.run(load_params(Path("params.yaml")).declared(finetune.PARAMS))
    return 0


def tries() -> list[Try]:
    (folder,) = (path for path in paths.TUNING.iterdir() if path.is_dir())
    return SearchFolder(folder, 0.0).tries()


def test_the_winner_is_what_dvc_repro_makes_and_nothing_is_trained_anew() -> None:
    tuning.tune(LONG, [], most=4)
    report, found = read_json(paths.TUNING_REPORT), tries()
    winner = found[report["winner"]]
    losses = [each.best("val_loss")["val_loss"] for each in found if each.over]
    assert report["val_loss"] == min(losses) == winner.best("val_loss")["val_loss"]
    written = load_params(Path("params.yaml"))
    assert written.finetune.model_dump() == report["finetune"]
    assert read_json(paths.report_of("finetune"))["val_loss"] == report["val_loss"]
    tuned = load_file(paths.FINETUNE / "model.safetensors")

    write_params({})
    changes = written.model_copy(update={"run": written.run.model_copy(update={"cache": "another"})})
    finetune.run(changes.declared(finetune.PARAMS))
    anew = load_file(paths.FINETUNE / "model.safetensors")
    assert all((tuned[name] == anew[name]).all() for name in anew), "stopped after each rung, it is the same training"
