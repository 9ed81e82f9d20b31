"""Interrupted equals uninterrupted: bit for bit, wherever a signal comes; after a kill, from the last saved state."""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_table
from headstart.core.paths import FINETUNE
from headstart.core.run_state import read_stopped
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from headstart.training import checkpoint
from headstart.training.checkpoint import CHECKPOINT_FORMAT, CheckpointFiles
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.module import FineTuner
from helpers.images import params, write_prepared
from helpers.programs import Program

SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.drop_rate": 0.2,
    "finetune.epochs": 4,
    "finetune.batch_size": 8,
    "finetune.lr": {"backbone": 0.05, "head": 0.05},
    "finetune.augment.hflip": 0.5,
}
STEPS = 4
"""Of an epoch."""
Result = tuple[dict[str, Tensor], list[dict[str, str]], list[dict[str, str]]]


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared({"train": 35, "validation": 21, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)


def run(changes: dict[str, Any]) -> Result:
    """Weights, history and ledger; times left out."""
    finetune.run(params({**SMALL, **changes}).declared(finetune.PARAMS))
    return result()


def result() -> Result:
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_table(paths.HISTORY)]
    return load_file(FINETUNE / "model.safetensors"), rows, read_table(paths.LEDGER)


def assert_same(a: Result, b: Result) -> None:
    assert a[0].keys() == b[0].keys()
    assert {
        name: float((a[0][name] - b[0][name]).abs().max()) for name in a[0] if not a[0][name].equal(b[0][name])
    } == {}
    assert a[1:] == b[1:]


def signal_at(method: str, places: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Raise a signal within a step at each of these (epoch, batch) once; the function that is returned undoes it."""
    real, left = getattr(FineTuner, method), set(places)

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        place = (self.current_epoch, batch_idx)
        if place in left and self.trainer.state.fn == "fit":
            left.remove(place)
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, method, interrupted)
    return lambda: monkeypatch.setattr(FineTuner, method, real)


VARIANTS: dict[str, dict[str, Any]] = {
    "lp_ft": {},
    "ema": {"finetune.ema": 0.9, "finetune.recipe": "head_first", "finetune.phase_epochs": 2},
    "adam": {"finetune.optimizer": "adam", "finetune.lr": {"backbone": 1e-3, "head": 1e-2}, "finetune.clip": 1.0},
    "parts": {"finetune.accumulate": 2, "finetune.precision": "bf16-mixed"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_at_any_step_is_the_same_as_never_interrupted(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch, at its last step, in validation, twice in one epoch, in the first and in the last one."""
    changes = VARIANTS[variant]
    expected = run({**changes, "run.cache": "whole"})
    parts = changes.get("finetune.accumulate", 1)
    steps = {(0, 0), (0, 1), (1, STEPS - 1), (2, 0), (3, 1), (3, STEPS - 1)}
    signal_at("training_step", {(epoch, step * parts + parts - 1) for epoch, step in steps}, monkeypatch)
    signal_at("validation_step", {(0, 0), (1, 1), (3, 0)}, monkeypatch)
    progress = []
    for _ in range(len(steps) + 3):
        with pytest.raises(SystemExit) as stop:
            run({**changes, "run.cache": "parts"})
        assert stop.value.code == 128 + signal.SIGTERM
        marker = read_stopped()
        assert marker is not None
        assert (marker["stage"], marker["reason"]) == ("finetune", "SIGTERM")
        progress.append(marker["progress"])
    found = run({**changes, "run.cache": "parts"})
    # Not one step was lost, and none was done twice.
    assert progress == sorted([epoch * STEPS + step + 1 for epoch, step in steps] + [STEPS, 2 * STEPS, 4 * STEPS])
    assert_same(expected, found)


def program(changes: dict[str, Any], *, start_new_session: bool = False) -> Program:
    """The stage as a user starts it: in a process, since signals and kills are what is tested."""
    YAML().dump(params({**SMALL, **changes}).model_dump(), Path("params.yaml"))
    return Program("headstart.stages.finetune", start_new_session=start_new_session)


LONG, ENDLESS = (
    {
        "finetune.epochs": epochs,
        "finetune.early_stopping": {"monitor": "val_loss", "patience": epochs, "min_delta": 0.0},
    }
    for epochs in (30, 10_000)
)


def until(running: Program, start: str) -> None:
    lines = []
    for line in running.stdout:
        lines.append(line)
        if line.startswith(start):
            return
    pytest.fail("".join(lines))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_program_saves_and_gives_its_exit_code(number: signal.Signals) -> None:
    with program({**ENDLESS, "run.cache": "cache"}) as running:
        until(running, "epoch   2")
        running.send_signal(number)
        running.send_signal(number)
        rest, _ = running.communicate(timeout=120)
    assert running.returncode == 128 + number, rest
    marker = read_stopped()
    assert marker is not None
    assert marker["reason"] == number.name
    assert marker["progress"] >= 2 * STEPS
    assert f"stopped by {number.name} after {marker['progress']} steps: start again" in rest
    assert not FINETUNE.exists()


def test_after_a_kill_it_resumes_from_the_last_checkpoint() -> None:
    changes = {**LONG, "run.cache": "cache", "run.workers": 1}
    with program(changes) as running:
        until(running, "epoch   5")
        running.kill()
    with program(changes) as running:
        rest, _ = running.communicate(timeout=120)
    assert running.returncode == 0, rest
    assert "finetune: resuming after epoch" in rest
    found = result()
    assert_same(run({**LONG, "run.cache": "whole"}), found)


def test_a_checkpoint_is_saved_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    real = CheckpointFiles.save_checkpoint

    def noted(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        saved.append(checkpoint["global_step"])
        real(self, checkpoint, path, storage_options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", noted)
    ticks = iter(range(0, 10**9, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))  # ten seconds from one look at the clock to the next
    run({"run.cache": "cache", "run.save_minutes": 0.5})
    within = [step for step in saved if step % STEPS]
    assert within
    saved.clear()
    run({"run.cache": "another", "run.save_minutes": 1e6})
    assert [step for step in saved if step % STEPS] == []


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run({"run.cache": "whole"})
    signal_at("training_step", {(1, 1), (2, 2)}, monkeypatch)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run({"run.cache": "cache"})
    (last,) = Path("cache/runs").glob("*/last.ckpt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # a flipped bit: the file is as long as before
    last.write_bytes(content)
    assert_same(run({"run.cache": "cache"}), expected)
    assert "last.ckpt is damaged" in caplog.text
    for path in last.parent.glob("*.ckpt"):
        os.truncate(path, path.stat().st_size // 2)
    caplog.clear()
    assert_same(run({"run.cache": "cache"}), expected)  # trains anew
    assert caplog.text.count("is damaged") == 2


def test_a_full_disk_is_reported_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run({"run.cache": "whole"})
    real = torch.save

    def full(state: dict[str, Any], file: Any) -> None:
        if full_after <= state["global_step"]:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(state, file)

    full_after = 2 * STEPS
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"the checkpoint after epoch 2 can't be saved in .*: free some space there"):
        run({"run.cache": "cache"})
    assert "was not saved" in caplog.text
    assert not list(Path("cache").rglob("*.partial"))
    full_after = 10**9
    assert_same(run({"run.cache": "cache"}), expected)


def test_nothing_that_runs_is_read_from_a_checkpoint() -> None:
    run({"run.cache": "cache"})
    (last,) = Path("cache/runs").glob("*/last.ckpt")
    state = torch.load(last, weights_only=True)
    assert json.dumps(state["history"])


def test_a_kill_while_the_best_epoch_is_saved_does_not_forget_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two of the changes of names that a save makes, in a training whose first epochs are its best."""

    def scripted(self: Any) -> None:
        self.log("val_loss", [0.6, 0.5, 0.7, 0.8][self.current_epoch] if self.trainer.state.fn == "fit" else 9.0)
        self.log("val_refined_loss", 0.1)
        self.log("val_accuracy", 0.5)
        self.val_loss.reset()
        self.val_refined_loss.reset()

    monkeypatch.setattr(FineTuner, "on_validation_epoch_end", scripted)
    expected = run({"run.cache": "whole"})
    real, left = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        if target.suffix == ".ckpt":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for change in range(1, 6):  # the first save has no previous one
        left = change
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run({"run.cache": f"cache{change}"})
        assert_same(run({"run.cache": f"cache{change}"}), expected)


def test_a_second_start_in_the_folder_is_refused_and_names_the_first() -> None:
    with program({**ENDLESS, "run.cache": "cache"}) as running:
        until(running, "epoch   1")
        with program({**ENDLESS, "run.cache": "another"}) as second:
            rest, _ = second.communicate(timeout=120)
        assert second.returncode == 1
        assert (
            f"error: the pipeline of this folder already runs on {socket.gethostname()} as process {running.pid}"
            in rest
        )
        running.kill()


def test_a_signal_while_a_phase_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning has handlers of its own from then on, which we do without."""
    real = FineTuneDataModule.train_dataloader

    def interrupted(self: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(self)

    expected = run({"run.cache": "whole"})
    monkeypatch.setattr(FineTuneDataModule, "train_dataloader", interrupted)
    with pytest.raises(SystemExit) as stop:
        run({"run.cache": "cache"})
    assert stop.value.code == 128 + signal.SIGTERM
    marker = read_stopped()
    assert marker is not None
    assert marker["progress"] == 1
    monkeypatch.setattr(FineTuneDataModule, "train_dataloader", real)
    assert_same(run({"run.cache": "cache"}), expected)


def test_a_signal_to_all_processes_of_a_job_leaves_those_that_load() -> None:
    """As Slurm sends it; without them the step that is under way could not end."""
    with program({**ENDLESS, "run.cache": "cache", "run.workers": 2}, start_new_session=True) as running:
        until(running, "epoch   2")
        os.killpg(running.pid, signal.SIGTERM)
        rest, _ = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM, rest
    marker = read_stopped()
    assert marker is not None
    assert marker["progress"] >= 2 * STEPS


def test_checkpoints_of_an_earlier_version_are_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "CHECKPOINT_FORMAT", CHECKPOINT_FORMAT - 1)
        run({"run.cache": "cache"})
    (earlier,) = (path for path in Path("cache/runs").iterdir() if path.is_dir())
    with caplog.at_level(logging.INFO):
        run({"run.cache": "cache"})
    assert f"begins anew, since {earlier} is of an earlier version: delete that folder" in caplog.text
    assert (earlier / "last.ckpt").exists()
