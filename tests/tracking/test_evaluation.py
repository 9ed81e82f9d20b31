"""What evaluate and export add to the fine-tuning's run, as wandb's server receives it: online, or by a sync."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from headstart.core import paths
from headstart.core.io import read_json, read_table, write_json, write_report
from headstart.core.paths import TRACKED_RUN
from headstart.data.dataset import PreparedDataset
from headstart.stages import evaluate, export
from headstart.tracking.wandb_run import Tracker
from helpers.images import params, write_finetune, write_prepared, write_probe
from helpers.wandb_server import WandbServer, wandb_server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Make a fine-tuned model that was tracked; yield a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "write_html_report", lambda _: paths.REPORTS / "index.html")
    prepared = write_prepared(files=True)
    write_probe(prepared, write_finetune())
    write_report("prepare", {"splits": {"train": 12, "validation": 10, "test": 9}})
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()


def run_all(tracking: str) -> None:
    settings = params(
        {
            "run.tracking": tracking,
            "evaluate.batch_size": 4,
            "export.pictures": 4,
            "export.formats": [],
            "prepare.source": "imagefolder",
        }
    )
    tracker = Tracker(settings.run, Path("record.json"), {"finetune": {"epochs": 1}})
    tracker.log([{"epoch": 1, "val_loss": 0.5}], [{"epoch": 1, "step": 1, "step/loss": 0.75}])
    tracker.finish({"finetune/val_loss": 0.5})
    write_json(TRACKED_RUN, {"id": tracker.id})
    evaluate.run(settings.declared(evaluate.PARAMS))
    export.run(settings.declared(export.PARAMS))


@pytest.mark.parametrize("tracking", ["online", "offline"])
def test_figures_tables_and_lineage_arrive(project: WandbServer, tracking: str) -> None:
    run_all(tracking)
    if tracking == "offline":
        assert not project.runs
        # wandb sends runs side by side: the one that makes the features goes first, as docs/tracking.md says.
        for what in ([str(path) for path in Path("wandb").glob("*-features")], ["--yes"]):
            sync = [sys.executable, "-m", "wandb", "sync", *what]
            done = subprocess.run(sync, env=dict(os.environ), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    run_id = read_json(TRACKED_RUN)["id"]
    run, features = project.runs[run_id], project.runs[f"{run_id}-features"]
    assert len(project.runs) == 2

    # One run, resumed: what the fine-tuning logged is still there.
    assert run.steps == [0, 1]
    assert run.config == {"finetune": {"epochs": 1}}
    assert {each.about["groupName"] for each in project.runs.values()} == {run_id}
    assert (run.about["jobType"], features.about["jobType"]) == ("finetune", "features")

    report = read_json(paths.REPORTS / "evaluate.json")
    assert run.summary["finetune/val_loss"] == 0.5
    assert run.summary["verdict"] == report["verdict"]
    for name, figures in report["models"].items():
        assert run.summary[f"test/{name}/accuracy"] == figures["accuracy"]
    predictions = read_table(paths.PREDICTIONS)
    wrong = sum(row["label"] != row["finetune"] for row in predictions)
    assert wrong
    assert run.summary["leaderboard"]["nrows"] == len(report["models"])
    assert run.summary["mistakes"]["nrows"] == wrong
    assert run.summary["confusion"]["ncols"] == 3
    assert sum(file.startswith("media/images") for file in run.files) == 0  # they are in the table's artifact
    (gallery,) = [each for key, each in project.artifacts.items() if "mistakes" in key]
    assert sum(file.endswith(".png") for file in gallery["files"]) == wrong

    assert {"dataset:v0", "features:v0", "model:v0"} <= set(project.artifacts)
    assert {each["state"] for each in project.artifacts.values()} == {"COMMITTED"}
    assert features.used == ["dataset:v0"]
    assert sorted(run.used) == ["dataset:v0", "features:v0"]
    assert project.artifacts["features:v0"]["runName"] == f"{run_id}-features"
    assert project.artifacts["model:v0"]["runName"] == run_id
    assert set(project.artifacts["model:v0"]["files"]) == {path.name for path in paths.EXPORT.iterdir()}
    assert PreparedDataset.open().classes[0] in project.artifacts["dataset:v0"]["metadata"]


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_tables_of_any_target_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "write_html_report", lambda _: paths.HTML_REPORT)
    prepared = write_prepared({"train": 12, "validation": 30, "test": 40}, kind=kind)
    write_probe(prepared, write_finetune(target=prepared.target))
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        settings = params({"run.tracking": "online", "evaluate.batch_size": 8})
        tracker = Tracker(settings.run, Path("record.json"), {})
        tracker.finish({"finetune/val_loss": 0.5})
        write_json(TRACKED_RUN, {"id": tracker.id})
        evaluate.run(settings.declared(evaluate.PARAMS))
        wandb.teardown()
        run = server.runs[tracker.id]
    report = read_json(paths.report_of("evaluate"))
    primary = next(iter(prepared.target.measures))
    assert run.summary["verdict"] == report["verdict"]
    for name, figures in report["models"].items():
        assert run.summary[f"test/{name}/{primary}"] == figures[primary]
    assert run.summary["leaderboard"]["nrows"] == len(report["models"])
    assert run.summary["confusion"]["nrows"] == len(
        {tuple(row.values()) for row in read_table(paths.CONFUSION["finetune"])}
    )
    rows = read_table(paths.PREDICTIONS)
    said = [[row[f"finetune{suffix}"] for suffix in prepared.target.suffixes] for row in rows]
    wrong = sum(prepared.target.mistake(row["label"], each) is not None for row, each in zip(rows, said, strict=True))
    assert run.summary["mistakes"]["nrows"] == wrong > 0
