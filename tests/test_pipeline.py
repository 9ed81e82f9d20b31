"""The whole pipeline through its real programs: `dvc repro` in a project of its own, on invented images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from ruamel.yaml import YAML

from helpers.images import ROOT, params

CHANGES = {
    "prepare.source": "imagefolder",
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "features.batch_size": 16,
    "probe.l2": [0.1, 0.01],
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "finetune.recipe": "full",  # so that some epoch is better than the start
    "evaluate.batch_size": 16,
    "evaluate.top_k": 2,
    "export.pictures": 8,
    "run.cache": "cache",
}
STAGES = ("prepare", "features", "probe", "finetune", "evaluate", "export")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as a user has it: images in data/raw, git and DVC at hand."""
    project = tmp_path_factory.mktemp("project")
    generator = np.random.default_rng(0)
    for i, label in enumerate(("cat", "dog", "owl")):
        (project / "data" / "raw" / label).mkdir(parents=True)
        for j in range(16):
            noise = generator.integers(60 * i, 60 * i + 120, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(project / "data" / "raw" / label / f"{j}.png")
    for name in ("dvc.yaml", "slurm", ".dvc/config", ".gitignore"):
        source, target = ROOT / name, project / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    YAML().dump(params(CHANGES).model_dump(), project / "params.yaml")
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")
    return project


def git(project: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=project, check=True, capture_output=True, text=True
    ).stdout


def dvc(project: Path, *arguments: str) -> str:
    identity = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@localhost"}
    identity |= {"GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        env={**os.environ, **identity, "VIRTUAL_ENV": sys.prefix},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def output(project: Path) -> str:
    return dvc(project, "repro")


def test_every_stage_runs_and_writes_its_report(project: Path, output: str) -> None:
    assert ran(output) == list(STAGES)
    for stage in STAGES:
        assert json.loads((project / "reports" / f"{stage}.json").read_text())


def test_the_second_run_runs_nothing(project: Path, output: str) -> None:
    assert ran(output)
    assert ran(dvc(project, "repro")) == []
    assert "up to date" in dvc(project, "status")


def test_the_leaderboard_has_both_models(project: Path, output: str) -> None:
    report = json.loads((project / "reports" / "evaluate.json").read_text())
    assert set(report["models"]) == {"probe", "finetune"}
    assert report["models"]["finetune"]["accuracy"] >= 0
    assert "finetune" in output
    assert "reports/evaluate.json" in dvc(project, "metrics", "show")


def test_the_export_loads_in_timm(project: Path, output: str) -> None:
    assert output
    model = timm.create_model(f"local-dir:{project / 'export'}", pretrained=True)
    assert model.num_classes == 3


def test_an_experiment_reruns_only_what_uses_the_changed_key(project: Path, output: str) -> None:
    assert output
    git(project, "add", "-A")
    git(project, "commit", "-qm", "first run")
    tried = dvc(project, "exp", "run", "-S", "finetune.l2.head=1e-2")
    assert ran(tried) == ["finetune", "evaluate", "export"]
