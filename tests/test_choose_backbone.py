"""Backbones ranked on a sample: what is written into params.yaml, what is left out, and the rule of the choice."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from headstart import choose_backbone
from headstart.choose_backbone import Candidate
from headstart.config.completion import complete_params
from headstart.config.loader import load_params
from headstart.targets.classes import Classes
from headstart.targets.number import Numbers
from helpers.command import headstart
from helpers.images import ROOT, SMALL_PROJECT, draw_brightness_classes

LABELS = np.arange(400) % 3
TARGET = Classes(["a", "b", "c"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 60 images; gives its params.yaml."""
    monkeypatch.chdir(tmp_path)
    draw_brightness_classes(tmp_path / "data" / "raw", ("dark", "grey", "light"))
    file, changes = tmp_path / "params.yaml", dict[str, dict[str, object]]()
    for key, value in {**SMALL_PROJECT, "run.workers": 0, "run.accelerator": "cpu"}.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = value
    shutil.copy(ROOT / "params.yaml", file)
    YAML(typ="safe").dump(changes, tmp_path / "overlay.yaml")
    complete_params(file, tmp_path / "overlay.yaml")
    return file


def test_the_chosen_one_is_written_and_what_fails_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_backbone, "affordable_size", lambda *_, **__: 8)
    monkeypatch.setattr(choose_backbone, "seconds_a_step", lambda *_, **__: [0.5])
    before = project.read_text(encoding="utf-8")
    answer = headstart("choose-backbone", "no_such_model", "test_vit", "test_convnext", "--best", "--sample", "45")
    assert (answer.exit_code, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("no_such_model: left out: backbone.name: no_such_model: Unknown model")
    assert lines[1].split()[:3] == ["name", "pixels", "accuracy"]
    assert {line.split()[0] for line in lines[2:4]} == {"test_vit", "test_convnext"}
    chosen = load_params(project).backbone.name
    assert chosen == lines[2].split()[0] == lines[5].partition(":")[0]
    assert lines[6] == f"changed backbone.name: test_resnet → {chosen}"
    assert project.read_text(encoding="utf-8") == before.replace("name: test_resnet", f"name: {chosen}")
    assert sorted(path.name for path in project.parent.iterdir()) == ["cache", "data", "overlay.yaml", "params.yaml"]
    assert [path.name for path in Path("cache").iterdir()] == ["features"]

    again = headstart("choose-backbone", chosen, "--sample", "45").stdout.splitlines()
    assert again[1].split()[-2] == "cached"  # no image was sent through it a second time
    assert again[-1] == f"params.yaml: backbone.name is {chosen} already"


def test_what_is_wrong_with_the_images_or_with_all_of_them_is_an_error(project: Path) -> None:
    before = project.read_bytes()
    answer = headstart("choose-backbone", "no_such_model")
    assert (answer.exit_code, "none of them can be used" in answer.stderr) == (1, True)
    for path in Path("data/raw/dark").iterdir():
        path.write_bytes(b"no image")
    answer = headstart("choose-backbone", "test_vit", "test_convnext")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "bad images" in answer.stderr
    assert project.read_bytes() == before


def candidate(name: str, margin: float, rate: float, *, wrong: int = 0) -> Candidate:
    """One that is sure of the right class by some margin on average, and of another class for the first images."""
    labels = np.where(np.arange(len(LABELS)) < wrong, (LABELS + 1) % 3, LABELS)
    noise = np.random.default_rng(0).normal(size=(len(LABELS), 3))
    return Candidate(name, 64, np.asarray(margin * np.eye(3)[labels] + noise, np.float32), 100.0, rate)


def test_the_cheapest_that_is_not_clearly_worse_is_chosen() -> None:
    best, near = candidate("best", 4.0, 10.0, wrong=20), candidate("near", 4.0, 30.0, wrong=21)
    poor = candidate("poor", 4.0, 90.0, wrong=80)
    chosen, table = choose_backbone.rank([poor, near, best], LABELS, None, TARGET, best=False)
    assert chosen == "near"
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["best", "near", "poor"]
    assert choose_backbone.rank([poor, near, best], LABELS, None, TARGET, best=True)[0] == "best"


def test_how_sure_a_probe_is_does_not_count() -> None:
    """Ten times the logits are the same probe after its temperature."""
    sober = candidate("sober", 4.0, 1.0, wrong=20)
    loud = sober._replace(name="loud", outputs=10 * sober.outputs, training_rate=2.0)
    assert choose_backbone.rank([sober, loud], LABELS, None, TARGET, best=False)[0] == "loud"


def test_where_no_step_could_be_timed_the_best_is_chosen_and_no_speed_claimed() -> None:
    best, near = candidate("best", 4.0, 0.0, wrong=20), candidate("near", 4.0, 0.0, wrong=21)
    chosen, table = choose_backbone.rank([near, best], LABELS, None, TARGET, best=False)
    assert (chosen, table.splitlines()[-1]) == ("best", "best: the best probe")
    assert table.count("too slow") == 2


def test_numbers_are_ranked_by_their_own_loss() -> None:
    values = np.random.default_rng(0).normal(50, 10, (300, 1)).astype(np.float32)
    target = Numbers(["age"], ["years"], [50.0], [10.0])
    noise = np.random.default_rng(1).normal(size=(300, 1))
    near, far = (
        Candidate(name, 64, np.asarray((values - 50) / 10 + spread * noise, np.float32), 100.0, 10.0)
        for name, spread in (("near", 0.1), ("far", 0.5))
    )
    chosen, table = choose_backbone.rank([far, near], values, None, target, best=False)
    assert chosen == "near"
    assert "MAE [years]" in table.splitlines()[0]
