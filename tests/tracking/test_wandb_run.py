"""Each row of a run appears once in what a sync sends, whatever happened to its files; a lost server costs little."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from click.testing import CliRunner
from wandb.cli.cli import cli

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.tracking import wandb_run
from headstart.tracking.wandb_run import TrackedRow, Tracker, interleave_rows
from helpers.images import params
from helpers.wandb_server import WandbServer, wandb_server, without_wandb

RECORD = Path("record.json")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.chdir(tmp_path)
    with wandb_server() as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state
        wandb.teardown()


def run_config(tracking: str) -> RunConfig:
    return params({"run.tracking": tracking}).run


def history(epochs: int) -> tuple[list[TrackedRow], list[TrackedRow]]:
    """The rows of so many epochs, and of the two steps of each."""
    steps: list[TrackedRow] = [
        {"epoch": 1 + i // 2, "step": i + 1, "step/loss": 1 / (i + 1)} for i in range(2 * epochs)
    ]
    return [{"epoch": i + 1, "val_loss": 0.5 - i / 100} for i in range(epochs)], steps


def track(epochs: int, tracking: str = "offline") -> str:
    """Log so many epochs in a start of its own; return the run's id."""
    time.sleep(1 - time.time() % 1)  # wandb names an offline start's folder by the second
    tracker = Tracker(run_config(tracking), RECORD, {"seed": 0})
    tracker.log(*history(epochs))
    tracker.finish({"epochs": epochs})
    return tracker.id


def sync() -> None:
    """Run `wandb sync --yes`, in this process since only what it sends matters."""
    done = CliRunner().invoke(cli, ["sync", "--yes"])
    assert done.exit_code == 0, done.output
    assert "ERROR" not in done.output


def files() -> list[Path]:
    return sorted(Path("wandb").glob("offline-run-*/*.wandb"))


def assert_whole(server: WandbServer, run_id: str, epochs: int) -> None:
    assert set(server.runs) == {run_id}
    lines = server.runs[run_id].lines
    logged: list[dict[str, Any]] = [
        {name: value for name, value in line.items() if not name.startswith("_")} for line in lines
    ]
    assert logged == interleave_rows(*history(epochs))
    assert server.runs[run_id].steps == list(range(3 * epochs))
    assert server.runs[run_id].summary["epochs"] == epochs


def without_end(file: Path, left: int | None) -> None:
    """Cut a file as a kill leaves it: to so many bytes, or 3 bytes before its end."""
    wandb.teardown()  # finish() returns before wandb's process has written the file to its end
    os.truncate(file, file.stat().st_size - 3 if left is None else left)


def test_the_files_of_a_resumed_run_continue_each_other(server: WandbServer) -> None:
    run_id = track(1)
    assert track(3) == run_id
    assert len(files()) == 2
    sync()
    assert_whole(server, run_id, 3)


@pytest.mark.parametrize("left", [7, 600, None])
def test_a_file_without_an_end_is_written_again(server: WandbServer, left: int | None) -> None:
    """wandb's sync stops at such a file, and sends its rows again the next time."""
    run_id = track(1)
    track(2)
    without_end(files()[1], left)
    assert track(3) == run_id
    assert len(files()) == 2
    sync()
    assert_whole(server, run_id, 3)


@pytest.mark.parametrize("removed", [False, True])
def test_what_was_sent_before_is_not_sent_again(server: WandbServer, removed: bool) -> None:
    run_id = track(1)
    sync()
    if removed:
        shutil.rmtree("wandb")
    assert track(2) == run_id
    sync()
    assert_whole(server, run_id, 2)


def test_online_the_server_knows_where_to_resume(server: WandbServer) -> None:
    run_id = track(1, "online")
    # The record is wrong: the server has fewer rows, as after a node's death.
    write_json(RECORD, read_json(RECORD) | {"rows": 100, "first": 100})
    track(3, "online")
    assert_whole(server, run_id, 3)


def test_in_a_sweep_the_run_is_the_agents(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    track(2, "online")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    assert track(2, "online") == "agents"
    assert len(server.runs) == 2
    assert server.runs["agents"].steps == list(range(6))


def test_without_a_server_it_is_kept_offline(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 2)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run_id = track(2, "online")
    assert "does not answer" in caplog.text
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", server.environment["WANDB_BASE_URL"])
    sync()
    assert_whole(server, run_id, 2)


def test_a_server_that_goes_away_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 2)
    with wandb_server() as server, monkeypatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        tracker = Tracker(run_config("online"), RECORD, {})
        tracker.log(*history(1))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, wandb_run.__name__):
        tracker.log(*history(2))
        tracker.finish({})
    wandb.teardown()
    assert time.monotonic() - began < 20
    assert "`dvc repro -f -s finetune` sends the rest" in caplog.text


def test_a_missing_key_is_an_error_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without_wandb(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"run.tracking: .*`wandb login` first, or use offline or disabled"):
        track(1, "online")
    wandb.teardown()
