"""What takes long with the real DVC: a small program of its name replaces it, in real processes that get signals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from headstart.core.paths import BATCH_HEARTBEAT, STOPPED
from headstart.core.run_state import UNDER_LOCK, write_stopped
from helpers.fake_project import environment

SUPERVISE = """
import sys
from headstart.slurm import supervisor
supervisor.BETWEEN_STAGES_S = supervisor.AFTER_LOSS_S = 1
supervisor.POLL_S = supervisor.HEARTBEAT_S = 0.1
print(supervisor.run_dvc(sys.argv[1:], 'this start'))
"""
STAGE = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, _: sys.exit("saved"))
print(os.getpid(), flush=True)
time.sleep(60)
"""
DVC = """
import subprocess, sys, time
if sys.argv[1:]:
    subprocess.run(sys.argv[1:], env={"DVC_STAGE": "it"})
time.sleep(60)
"""
COMMAND = [sys.executable, "stage.py"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.py").write_text(DVC)
    Path("stage.py").write_text(STAGE)


def supervise(*arguments: str) -> subprocess.Popen[str]:
    """Start it, and wait for its first heartbeat."""
    command = [sys.executable, "-c", SUPERVISE, *arguments]
    started = subprocess.Popen(command, env=environment(Path()) | {"PYTHONPATH": "."}, stdout=-1, stderr=-1, text=True)
    while not BATCH_HEARTBEAT.exists():
        assert started.poll() is None
        time.sleep(0.02)
    return started


def test_between_stages_dvc_itself_is_interrupted() -> None:
    start = time.monotonic()
    with supervise() as supervised:
        supervised.terminate()
        out, err = supervised.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert out == "(-2, [15])\n"
    assert time.monotonic() - start >= 1


def test_a_stage_below_shells_that_wait_for_it_gets_the_signal_itself() -> None:
    """A shell that got it would die and leave its stage running alone."""
    with supervise("sh", "-c", 'sh -c \'"$0" "$@"; true\' "$0" "$@"; echo the shell goes on', *COMMAND) as supervised:
        assert supervised.stdout is not None
        supervised.stdout.readline()
        supervised.send_signal(signal.SIGUSR1)
        assert supervised.stdout.readline() == "the shell goes on\n"
        supervised.terminate()
        assert "saved\n" in supervised.communicate(timeout=20)[1]


def test_what_does_not_end_after_a_loss_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated marker, and one of an earlier start, is no such loss."""
    monkeypatch.setenv(UNDER_LOCK, "an earlier start")
    with supervise(*COMMAND) as supervised:
        assert supervised.stdout is not None
        stage = int(supervised.stdout.readline())
        write_stopped("it", "lost", 3, "rank 1 on node2 is gone")
        time.sleep(2)
        STOPPED.write_text('{"stage":')
        time.sleep(0.5)
        assert psutil.pid_exists(stage)
        monkeypatch.setenv(UNDER_LOCK, "this start")
        write_stopped("it", "lost", 3, "rank 1 on node2 is gone")
        assert supervised.communicate(timeout=20)[0] == "(-9, [])\n"
    assert not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE


def test_it_writes_heartbeats_as_long_as_it_lives() -> None:
    with supervise(*COMMAND) as supervised:
        counts = []
        for _ in range(3):
            counts.append(json.loads(BATCH_HEARTBEAT.read_text())["count"])
            time.sleep(0.5)
        assert counts == sorted(set(counts))
        assert json.loads(BATCH_HEARTBEAT.read_text())["pid"] == supervised.pid
        supervised.terminate()
        supervised.communicate(timeout=20)
    assert not BATCH_HEARTBEAT.exists()
