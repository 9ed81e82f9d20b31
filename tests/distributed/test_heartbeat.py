"""Which rank is blamed, by invented heartbeats; tests/stages has the loss of a real rank."""

import itertools
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.paths import BATCH_HEARTBEAT, HEARTBEATS
from headstart.core.run_state import read_stopped
from headstart.distributed import heartbeat
from headstart.distributed.heartbeat import EXIT_CODE, Watchdog, watch_heartbeats

HOST = socket.gethostname()


class LeftError(Exception):
    """Raised instead of ending the process."""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Periods are a hundredth of the real ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(heartbeat, "PERIOD", 0.05)
    for name in (*heartbeat.START_VARIABLES, "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(os, "_exit", leave)


def write_heartbeat(rank: int, turn: int, count: int, where: str = "epoch 1, batch 7", **more: Any) -> None:
    about = {"host": f"node{rank}", "pid": 1, "start": "....", "turn": turn, "count": count, "where": where}
    write_json(HEARTBEATS / f"{rank}.json", about | more)


def diagnosis_of(watching: Watchdog) -> str:
    with pytest.raises(LeftError, match=str(EXIT_CODE)):
        watching.run()
    marker = read_stopped()
    assert marker is not None
    assert marker["reason"] == "lost"
    assert marker["host"] == HOST
    return marker["message"]


def test_a_silent_rank_is_named() -> None:
    write_heartbeat(1, turn=3, count=8)
    watching = Watchdog(0, 3, timeout=0.5)
    watching.beat("epoch 1, batch 8")
    message = diagnosis_of(watching)
    assert message == (
        "rank 1 on node1, rank 2, which never reported: no sign of life, "
        f"and rank 0 on {HOST} waits at epoch 1, batch 8"
    )


def test_a_rank_that_lives_and_stands_still_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    watching, turn, real = Watchdog(0, 2, timeout=0.4), 0, Watchdog._read  # noqa: SLF001

    def read(self: Any) -> None:
        nonlocal turn
        turn += 1
        write_heartbeat(1, turn, count=1, where="epoch 1, batch 1")
        real(self)

    monkeypatch.setattr(Watchdog, "_read", read)
    for batch in (1, 2):
        watching.beat(f"epoch 1, batch {batch}")
    assert diagnosis_of(watching) == (
        "no progress for 0 s: rank 1 on node1 at epoch 1, batch 1 stands still, and "
        f"rank 0 on {HOST} waits at epoch 1, batch 2"
    )


def test_a_heartbeat_of_an_earlier_start_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    write_heartbeat(1, turn=3, count=8, start=".12.0..")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert "rank 1, which never reported" in diagnosis_of(Watchdog(0, 2, timeout=0.4))


def test_as_long_as_there_is_progress_nothing_happens() -> None:
    with watch_heartbeats(0, 2, minutes=0.5 / 60) as watching:
        for step in range(20):
            watching.beat(f"step {step}")
            time.sleep(0.05)
        mine = json.loads((HEARTBEATS / "0.json").read_text())
    assert mine["host"] == HOST
    assert mine["count"] > 0
    assert read_stopped() is None


def test_one_alone_is_watched_without_files() -> None:
    with watch_heartbeats(0, 1, minutes=0.5 / 60) as watching:
        for step in range(10):
            watching.beat(f"step {step}")
            time.sleep(0.1)
    assert not HEARTBEATS.exists()
    assert read_stopped() is None
    alone = Watchdog(0, 1, timeout=0.2)
    alone.beat("epoch 1, batch 8")
    assert diagnosis_of(alone) == (
        f"run.timeout_minutes: no progress for 0 s on {HOST}, at epoch 1, batch 8: see whether its disks, devices "
        "and processes answer; if a step takes that long, raise it"
    )


def test_a_pause_of_the_whole_process_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by an hour is what Ctrl-Z and fg look like."""
    hours = itertools.count(step=3600)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(hours)))
    watching = Watchdog(0, 1, timeout=100)
    turns = iter([False, True])
    monkeypatch.setattr(watching._stopped, "wait", lambda _: next(turns))  # noqa: SLF001
    watching.run()


def test_the_lowest_rank_that_lives_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    watching, turn, real = Watchdog(2, 3, timeout=0.4), 0, Watchdog._read  # noqa: SLF001

    def read(self: Any) -> None:  # rank 0 lives, rank 1 is gone
        nonlocal turn
        turn += 1
        write_heartbeat(0, turn, count=5)
        real(self)

    monkeypatch.setattr(Watchdog, "_read", read)
    with pytest.raises(LeftError):
        watching.run()
    assert read_stopped() is None


def lose_connection() -> None:
    with watch_heartbeats(0, 2, minutes=1):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4444")


def test_a_lost_connection_names_who_is_silent() -> None:
    write_heartbeat(1, turn=3, count=8)
    with pytest.raises(LeftError):
        lose_connection()
    marker = read_stopped()
    assert marker is not None
    assert marker["message"].startswith("rank 1 on node1: no sign of life")
    assert "Connection closed by peer" in marker["message"]


def test_where_another_rank_failed_by_its_own_fault_no_one_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    write_heartbeat(1, turn=3, count=8, failed="its own error")
    with pytest.raises(RuntimeError, match="Connection closed"):
        lose_connection()
    assert read_stopped() is None
    with pytest.raises(RuntimeError, match="CUDA error"), watch_heartbeats(1, 2, minutes=1):
        raise RuntimeError("CUDA error")
    assert f"rank 1 on {HOST}: RuntimeError: CUDA error" in caplog.text
    with pytest.raises(UserError), watch_heartbeats(1, 2, minutes=1):
        raise UserError("a damaged image")
    assert "a damaged image" not in caplog.text  # the program prints it
    assert json.loads((HEARTBEATS / "1.json").read_text())["failed"] == "a damaged image"


@pytest.mark.parametrize(
    ("host", "job", "requeued"), [("node9", "12", True), (HOST, "12", False), ("node9", "11", False)]
)
def test_ranks_requeue_the_job_where_the_batch_scripts_node_is_gone(
    monkeypatch: pytest.MonkeyPatch, host: str, job: str, requeued: bool
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: called.append(command))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    write_json(BATCH_HEARTBEAT, {"host": host, "pid": 1, "job": job, "count": 7})
    diagnosis_of(Watchdog(0, 2, timeout=0.4))
    assert called == ([["scontrol", "requeue", "12"]] if requeued else [])


def test_the_marker_of_a_loss_has_the_steps_that_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """`headstart repro` measures progress by them; and a missing scontrol does not keep the process from ending."""

    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    write_json(BATCH_HEARTBEAT, {"host": "node9", "pid": 1, "job": "12", "count": 7})
    watching = Watchdog(0, 2, timeout=0.4)
    watching.saved_steps = 40
    for batch in range(5):
        watching.beat(f"batch {batch}")
    diagnosis_of(watching)
    marker = read_stopped()
    assert marker is not None
    assert marker["progress"] == 40


def test_a_failure_stays_in_the_heartbeats() -> None:
    watching = Watchdog(0, 2, timeout=10)
    watching.start()
    watching.failed(ValueError("its own"))
    time.sleep(0.3)
    assert json.loads((HEARTBEATS / "0.json").read_text())["failed"] == "its own"
    watching.stop()
