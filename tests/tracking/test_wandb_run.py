"""Each row of a run stands once in what a sync sends, whatever its files went through; a lost server costs little."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.tracking import wandb_run
from headstart.tracking.wandb_run import TrackedRow, Tracker, interleave_rows
from helpers.images import params
from helpers.wandb_server import WandbServer, wandb_server

RECORD = Path("record.json")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.chdir(tmp_path)
    with wandb_server() as state:
        for name, value in state.environment.items():
            monkeypatch.setenv(name, value)
        yield state
        wandb.teardown()


def how(tracking: str) -> RunConfig:
    return params({"run.tracking": tracking}).run


def history(epochs: int) -> tuple[list[TrackedRow], list[TrackedRow]]:
    """Rows of so many epochs, and of the two steps of each."""
    steps: list[TrackedRow] = [
        {"epoch": 1 + i // 2, "step": i + 1, "step/loss": 1 / (i + 1)} for i in range(2 * epochs)
    ]
    return [{"epoch": i + 1, "val_loss": 0.5 - i / 100} for i in range(epochs)], steps


def track(epochs: int, tracking: str = "offline") -> str:
    """Hand so many epochs over in a start of its own; give the run's id."""
    tracker = Tracker(how(tracking), RECORD, {"seed": 0})
    tracker.log(*history(epochs))
    tracker.finish({"epochs": epochs})
    return tracker.id


def sync() -> None:
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "ERROR" not in done.stderr, done.stderr


def files() -> list[Path]:
    return sorted(Path("wandb").glob("offline-run-*/*.wandb"))


def assert_whole(server: WandbServer, run_id: str, epochs: int) -> None:
    assert set(server.runs) == {run_id}
    lines = server.runs[run_id].lines
    told: list[dict[str, Any]] = [
        {name: value for name, value in line.items() if not name.startswith("_")} for line in lines
    ]
    assert told == interleave_rows(*history(epochs))
    assert server.runs[run_id].steps == list(range(3 * epochs))
    assert server.runs[run_id].summary["epochs"] == epochs


def without_end(file: Path, left: int | None) -> None:
    """Cut a file as a kill leaves it: to so many bytes, or 3 bytes before its end."""
    wandb.teardown()  # finish() returns before wandb's process has written the file to its end
    os.truncate(file, file.stat().st_size - 3 if left is None else left)


def test_stopped_and_gone_on_with_its_files_continue_each_other(server: WandbServer) -> None:
    run_id = track(1)
    assert track(3) == run_id
    assert len(files()) == 2
    sync()
    assert_whole(server, run_id, 3)


@pytest.mark.parametrize("left", [7, 600, None])
def test_a_file_without_an_end_is_written_again(server: WandbServer, left: int | None) -> None:
    """wandb's sync stops at one, and sends its rows again the next time."""
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
        subprocess.run(["rm", "-r", "wandb"], check=True)
    assert track(2) == run_id
    sync()
    assert_whole(server, run_id, 2)


def test_online_the_server_says_where_to_go_on(server: WandbServer) -> None:
    run_id = track(1, "online")
    # What is remembered here is wrong: the server has fewer rows, as after a node's death.
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
        tracker = Tracker(how("online"), RECORD, {})
        tracker.log(*history(1))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, wandb_run.__name__):
        tracker.log(*history(2))
        tracker.finish({})
    wandb.teardown()
    assert time.monotonic() - began < 20
    assert "`dvc repro -f -s finetune` sends the rest" in caplog.text


def test_a_key_that_is_missing_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"run.tracking: .*`wandb login` first, or use offline or disabled"):
        track(1, "online")
    wandb.teardown()
