"""`headstart tune` on a small model and invented images, in this process: DVC's stages are called directly."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import LightningModule, Trainer
from ruamel.yaml import YAML
from safetensors.torch import load_file

from headstart.config.loader import load_params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, read_table
from headstart.data.dataset import read_values
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from headstart.training.checkpoint import load_checkpoint
from headstart.training.figures import Monitor, known_figures
from headstart.tuning import tune as tuning
from headstart.tuning.halving import Try
from headstart.tuning.observer import Observer
from headstart.tuning.space import with_changes
from headstart.tuning.state import SearchFolder
from helpers.command import headstart
from helpers.images import params, write_prepared, write_zero_head

SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "run.cache": "cache",
    "finetune.epochs": 3,
    "finetune.batch_size": 8,
    "finetune.optimizer": "adam",
    "finetune.lr": {"backbone": "auto", "head": "auto"},
    "finetune.batch_norm": "auto",
    "finetune.ema": "auto",
    "finetune.early_stopping": {"monitor": "val_refined_loss", "patience": 9, "min_delta": 0.0},
}
LONG = 1e6
REFINED = Monitor("val_refined_loss", higher_is_better=False)
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost")


def repro(stages: list[str]) -> int:
    """Do what the real one does, without DVC."""
    if stages == ["finetune"]:
        finetune.run(load_params(Path("params.yaml")).declared(finetune.PARAMS))
    return 0


def lay_out(**changes: Any) -> None:
    """Write params.yaml and what the stages before finetune make."""
    write_prepared({"train": 20, "validation": 13, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    write_params(**changes)


def write_params(**changes: Any) -> None:
    with Path("params.yaml").open("w") as file:
        file.write("# mine\n")
        YAML().dump(params({**SMALL, **changes}).record(), file)


def folder() -> SearchFolder:
    (path,) = (path for path in paths.TUNING.iterdir() if path.is_dir())
    return SearchFolder(path, 0.0)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Try]]:
    """A search of five tries in a project that git knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        patch.setattr(tuning, "repro", repro)
        lay_out()
        stages = {"finetune": {"cmd": "true", "params": ["finetune"], "metrics": ["reports/finetune.json"]}}
        YAML().dump({"stages": stages}, Path("dvc.yaml"))
        for command in (["init", "-q"], ["add", "params.yaml", "dvc.yaml"], [*IDENTITY, "commit", "-qm", "start"]):
            subprocess.run(["git", *command], check=True)
        patch.setenv("GIT_COMMITTER_NAME", "t")
        patch.setenv("GIT_COMMITTER_EMAIL", "t@localhost")
        patch.setenv("GIT_AUTHOR_NAME", "t")
        patch.setenv("GIT_AUTHOR_EMAIL", "t@localhost")
        tuning.tune(LONG, [], most=5)
        yield folder().tries()


def test_the_best_whole_training_is_written_with_its_params(searched: list[Try]) -> None:
    report = read_json(paths.TUNING_REPORT)
    monitor = report["monitor"]
    winner = searched[report["winner"]]
    assert winner.over
    assert report[monitor] == min(each.best(REFINED)[monitor] for each in searched if each.over)
    written = load_params(Path("params.yaml"))
    assert written == with_changes(params(SMALL), winner.changes)
    assert written.finetune.model_dump() == report["finetune"]
    assert Path("params.yaml").read_text().startswith("# mine\n")
    assert read_json(paths.report_of("finetune"))[monitor] == report[monitor]
    assert [int(row["try"]) for row in read_table(paths.TUNING_TABLE)] == [0, 1, 2, 3, 4]


def test_stopped_at_each_rung_it_is_the_same_training(searched: list[Try], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; so `dvc repro` after it trains nothing anew."""
    winner = searched[read_json(paths.TUNING_REPORT)["winner"]]
    assert winner.trainings > 1
    tuned = load_file(paths.FINETUNE / "model.safetensors")
    steps = []
    monkeypatch.setattr(Observer, "on_train_batch_end", lambda *_: steps.append(1))
    again = load_params(Path("params.yaml")).declared(finetune.PARAMS)
    finetune.train(again, observers=[Observer(Path("unused"))])
    assert not steps

    elsewhere = again.model_copy(update={"run": again.run.model_copy(update={"cache": "elsewhere"})})
    finetune.run(elsewhere)
    anew = load_file(paths.FINETUNE / "model.safetensors")
    assert all((tuned[name] == anew[name]).all() for name in anew)


def test_every_try_applies_its_values(searched: list[Try]) -> None:
    """As the optimiser's own state in the checkpoint has them, not as they were proposed."""
    seen = set()
    for each in searched:
        given = with_changes(params(SMALL), each.changes).finetune
        groups = each.applied["groups"]
        assert each.applied["optimizer"].lower() == given.optimizer
        for name, layers_below in (("head", 0), ("backbone", 1)):
            largest = max(group["lr"] for group in groups if group["name"] == name)
            factor = (given.layer_decay or 1) ** layers_below
            assert each.number == 0 or largest == pytest.approx(float(given.lr[name]) * factor)
            (strength,) = {g["weight_decay"] / 2 + g["l2_in_loss"] for g in groups if g["name"] == name}
            assert strength == pytest.approx(given.l2.by_group[name])
        trained = each.applied["batch_norm"].partition(" ")[0]
        assert each.number == 0 or (trained == "0") == (given.batch_norm == "frozen")
        seen.add(tuple((group["lr"], group["weight_decay"] + group["l2_in_loss"]) for group in groups))
    assert len(seen) == len(searched) == 5
    kept = [each for each in searched if (Path(each.run) / "last.ckpt").exists()]
    assert {each.number for each in kept} == {0, read_json(paths.TUNING_REPORT)["winner"]}, "the others take space"
    for each in kept:
        saved = load_checkpoint(Path(each.run) / "last.ckpt")["optimizer_states"][0]["param_groups"]
        assert [group["initial_lr"] for group in saved] == [group["lr"] for group in each.applied["groups"]]


def test_each_image_s_scores_are_those_of_the_history(searched: list[Try]) -> None:
    for each in searched:
        loss, refined, error = folder().scores(each).mean(axis=2).T
        for i, row in enumerate(each.rows):
            assert loss[i] == pytest.approx(row["val_loss"], abs=1e-5)
            assert refined[i] == pytest.approx(row["val_refined_loss"], rel=5e-3) or error[i] == 0
            assert 1 - error[i] == pytest.approx(row["val_accuracy"])


def test_dvc_lists_the_tries(searched: list[Try]) -> None:
    """By a DVC of its own process, since it is DVC that must read them; nothing in Headstart imports it."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--csv"], check=True, capture_output=True, text=True
    ).stdout
    rows = {row["Experiment"]: row for row in csv.DictReader(shown.splitlines()) if row["rev"] != "workspace"}
    assert {f"tune-{each.number}" for each in searched} <= set(rows)
    for each in searched:
        row, values = rows[f"tune-{each.number}"], with_changes(params(SMALL), each.changes).finetune
        assert row["finetune.lr.head"] == str(values.lr["head"])
        assert float(row["val_accuracy"]) == pytest.approx(each.best(REFINED)["val_accuracy"], abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "monitor", "measure"),
    [
        ("number", "auto", "mae"),
        ("labels", "val_mean_ap", "mean_ap"),
        ("grade", "val_kappa", "kappa"),
        ("class", "val_balanced_accuracy", "accuracy"),
    ],
)
def test_every_target_is_searched_by_what_is_monitored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, monitor: str, measure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "repro", repro)
    prepared = write_prepared({"train": 20, "validation": 13, "test": 4}, kind=kind)
    write_zero_head(prepared)
    write_params(**{"finetune.early_stopping.monitor": monitor, "finetune.epochs": 2})
    tuning.tune(LONG, [], most=3)
    report, tries = read_json(paths.TUNING_REPORT), folder().tries()
    known = known_figures(prepared.target)
    deciding = Monitor(report["monitor"], known[report["monitor"]].higher_is_better)
    assert report["monitor"] == ("val_loss" if monitor == "auto" else monitor)
    costs = [deciding.cost(each.best(deciding)) for each in tries if each.over]
    assert deciding.cost(report) == min(costs)
    assert len(costs) > 1
    estimate = report[f"corrected_{measure}"]
    assert np.isfinite(estimate["value"])
    assert "label_smoothing" not in {key for each in tries for key in each.changes} or kind != "number"


def test_stopped_by_ctrl_c_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "repro", repro)
    lay_out()
    caplog.set_level("INFO", "headstart")
    original, seen = Observer.on_train_batch_end, []

    def interrupt(self: Observer, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        original(self, trainer, module, *rest)
        seen.append(1)
        if len(seen) == 3:  # in the second epoch of try 0
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Observer, "on_train_batch_end", interrupt)
    with pytest.raises(SystemExit) as stopped:
        tuning.tune(LONG, [], most=1)
    assert stopped.value.code == 128 + signal.SIGINT
    assert "tune: stopped; 1 tries are kept, and the same command goes on" in caplog.text
    assert not paths.TUNING_REPORT.exists()
    used = folder().used()
    tuning.tune(LONG, [], most=1)
    assert len(seen) == 3 * 2, "no step is taken twice"
    assert read_json(paths.TUNING_REPORT)["seconds"] > used


def test_where_the_budget_is_too_short_the_message_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "repro", repro)
    lay_out()
    with pytest.raises(
        UserError, match=r"--budget: an epoch takes .* one training of 3 epochs takes .* minutes with what"
    ):
        tuning.tune(1.0, [])


def test_fewer_epochs_where_not_as_many_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "repro", repro)
    lay_out()
    monkeypatch.setattr(tuning, "epochs_that_fit", lambda *_: 2)
    tuning.tune(LONG, ["finetune.epochs"], most=1)
    (only,) = folder().tries()
    assert (only.over, only.epochs, only.changes) == (True, 2, {"finetune.epochs": 2})
    assert load_params(Path("params.yaml")).finetune.epochs == 2
    assert len(folder().scores(only)[0, 0]) == len(read_values("validation"))


def test_a_try_that_can_t_be_trained_ends_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "repro", repro)
    lay_out()
    train, calls = finetune.train, []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise UserError("the loss is not finite")
        return train(*arguments, **options)

    monkeypatch.setattr(finetune, "train", fails_once)
    tuning.tune(LONG, [], most=2)
    assert [each.failed for each in folder().tries()].count("the loss is not finite") == 1
    assert read_json(paths.TUNING_REPORT)["tries"] == 2


@pytest.mark.parametrize(("budget", "seconds"), [("20m", 1200), ("1h30m", 5400), ("90s", 90)])
def test_budgets(budget: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(tuning, "tune", lambda *arguments: given.append(arguments))
    assert headstart("tune", "--budget", budget, "--search", "finetune.clip", "--tries", "3").exit_code == 0
    assert given == [(seconds, ("finetune.clip",), 3)]


@pytest.mark.parametrize("budget", ["20", "m", "", "0m", "1.5h"])
def test_what_is_no_time(budget: str) -> None:
    answer = headstart("tune", "--budget", budget)
    assert answer.exit_code == 2
    assert "is no time such as 20m, 1h30m or 90s" in answer.stderr
