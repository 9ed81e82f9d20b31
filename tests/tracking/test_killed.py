"""A tracked fine-tuning that is killed and resumed is one wandb run, in which each row appears once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from headstart.core.io import read_json, read_table
from headstart.core.paths import FINETUNE, HISTORY
from headstart.models.head import Head, write_heads
from helpers.images import params, write_prepared
from helpers.programs import Program
from helpers.wandb_server import WandbServer, wandb_server, without_wandb

EPOCHS, STEPS = 6, 8
CHANGES: dict[str, Any] = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "finetune.epochs": EPOCHS,
    "finetune.batch_size": 4,
    "finetune.clip": 1.0,
    "finetune.early_stopping": {"monitor": "val_loss", "patience": EPOCHS, "min_delta": 0.0},
    "run.cache": "cache",
    "run.save_minutes": 0.0001,
}
ROWS = list(range(EPOCHS * (STEPS + 1)))


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as state:
        yield state


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    without_wandb(tmp_path, monkeypatch)
    write_prepared({"train": 4 * STEPS, "validation": 8, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    return tmp_path


def train(tracking: str, variables: dict[str, str], kill_after: list[int], *, group: bool = False) -> None:
    """Run the stage as its own program, killed once it has printed each of these epochs, then to its end.

    Args:
        tracking: the key of params.
        variables: of the environment, beside this process's.
        kill_after: epochs.
        group: whether wandb's own process is killed with it, as by a node's death.
    """
    YAML().dump(params({**CHANGES, "run.tracking": tracking}).model_dump(), Path("params.yaml"))
    for epoch in [*kill_after, None]:
        with Program("headstart.stages.finetune", env=os.environ | variables, start_new_session=True) as running:
            printed = []
            for line in running.stdout:
                printed.append(line)
                if epoch is not None and f"epoch {epoch:3d} of" in line:
                    os.killpg(running.pid, signal.SIGKILL) if group else running.kill()
        assert running.returncode == (0 if epoch is None else -signal.SIGKILL), "".join(printed)


def rows_in(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = map(json.loads, printed.splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def assert_whole(rows: list[dict[str, Any]]) -> None:
    """Check that each row is there once, with what the training wrote."""
    assert [row["_step"] for row in rows] == ROWS
    steps = [row for row in rows if "step" in row]
    assert [row["step"] for row in steps] == list(range(1, EPOCHS * STEPS + 1))
    epochs = [row for row in rows if "val_loss" in row]
    written = [row for row in read_table(HISTORY) if row["epoch"] != "0"]
    assert [(row["epoch"], row["val_loss"]) for row in epochs] == [
        (int(row["epoch"]), float(row["val_loss"])) for row in written
    ]
    for row in epochs:
        losses = [each["step/loss"] for each in steps if each["epoch"] == row["epoch"]]
        assert np.mean(losses) == pytest.approx(row["train_loss"], rel=1e-5)


def test_offline_it_is_one_run_and_so_is_what_a_later_sync_sends(server: WandbServer) -> None:
    train("offline", {}, [1, 2, 4])
    run_id = read_json(FINETUNE / "tracking.json")["id"]
    files = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{run_id}.wandb"}
    assert_whole([row for file in files for row in rows_in(file)])

    for _ in range(2):
        sync = [sys.executable, "-m", "wandb", "sync", "--yes"]
        done = subprocess.run(sync, env=os.environ | server.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(server.runs) == {run_id}
        assert_whole(server.runs[run_id].lines)
    assert server.runs[run_id].config["finetune"]["epochs"] == EPOCHS
    assert server.runs[run_id].summary["finetune/epochs"] == EPOCHS


def test_online_it_resumes_after_the_last_row_of_the_server(server: WandbServer) -> None:
    train("online", server.environment, [1, 3], group=True)
    assert set(server.runs) == {read_json(FINETUNE / "tracking.json")["id"]}
    (run,) = server.runs.values()
    assert_whole(run.lines)
    assert run.exit_codes[-1] == 0
