"""`headstart repro` with the real DVC and stages that only count; test_jobs.py is the same in Slurm.

Its signals, and those of DVC and of the stage below it, are what is tested, so all of them are real processes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from headstart.config.completion import complete_params
from headstart.core.io import write_json
from headstart.core.paths import STOPPED
from helpers.fake_project import environment, fake_project, log

REPRO = [sys.executable, "-m", "headstart", "repro"]
STEPS = 15


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return fake_project(tmp_path / "project", finetune=STEPS, saving=0.3)


@contextmanager
def started(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start it, and yield it as soon as its stage counts."""
    before = len(log(project))
    with (project / "out").open("a") as out:
        repro = subprocess.Popen(
            [*REPRO, *arguments], cwd=project, env=environment(project), stdout=out, stderr=out, text=True
        )
    try:
        until(lambda: any("finetune" in line for line in log(project)[before:]))
        yield repro
    finally:
        repro.terminate()
        repro.wait()


def until(ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def finish(project: Path, command: list[str] = REPRO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=project, env=environment(project), capture_output=True, text=True, check=False, timeout=60
    )


def is_stage(process: psutil.Process) -> bool:
    return any(word.endswith("stage.py") for word in process.cmdline())


def saved(project: Path) -> int:
    """Return the step of the only save."""
    (line,) = (line for line in log(project) if "saved" in line)
    return int(line.split()[4])


@pytest.fixture(params=["bash", "sh"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shell by which DVC starts a stage: bash becomes the stage, Debian's sh waits for it."""
    monkeypatch.setenv("SHELL", shutil.which(request.param) or "")
    return str(request.param)


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGUSR1], 128 + signal.SIGUSR1),
        ([signal.SIGINT], 128 + signal.SIGINT),
        ([signal.SIGUSR1, signal.SIGTERM], 128 + signal.SIGTERM),
    ],
)
def test_the_stage_saves_and_the_next_start_resumes(project: Path, numbers: list[signal.Signals], code: int) -> None:
    """A second signal, while it saves, does no harm."""
    with started(project) as repro:
        for number in numbers:
            repro.send_signal(number)
            time.sleep(0.1)
        assert repro.wait(20) == code
    step = saved(project)
    assert 0 < step < STEPS
    assert log(project)[-1].endswith(" ".join(["after", *(number.name for number in numbers)]))
    assert f"headstart repro: finetune stopped at step {step}\n" in (project / "out").read_text()
    if len(numbers) > 1:
        done = finish(project)
        assert (done.returncode, log(project)[-1]) == (0, f"finetune 0/1 from {step}")
        assert "'prepare' didn't change, skipping" in done.stdout
        assert json.loads((project / "finetune.json").read_text()) == {"steps": STEPS}
        assert not (project / STOPPED).exists()


@pytest.mark.usefixtures("shell")
def test_sigterm_to_dvc_itself_reaches_the_stage(tmp_path: Path) -> None:
    project = fake_project(tmp_path / "project", finetune=60)
    with started(project) as repro:
        (dvc,) = psutil.Process(repro.pid).children()
        time.sleep(1.5)  # until the supervisor has seen the stage
        dvc.terminate()
        assert repro.wait(20) == 128 + signal.SIGTERM
    assert saved(project) < 60


@pytest.mark.parametrize("shell", ["bash"], indirect=True)  # a shell that waits shields the stage from DVC's end
@pytest.mark.usefixtures("shell")
def test_a_kill_of_it_ends_dvc_and_the_stage_and_leaves_nothing_to_repair(project: Path) -> None:
    with started(project) as repro:
        repro.kill()
        until(lambda: "saved" in log(project)[-1])
    assert saved(project) < STEPS
    assert finish(project).returncode == 0


def test_a_kill_of_everything_leaves_nothing_to_repair(project: Path) -> None:
    with started(project) as repro:
        for process in [psutil.Process(repro.pid), *psutil.Process(repro.pid).children(recursive=True)]:
            process.kill()
    # As another node sees it, where a process has that id, but is not DVC: DVC itself is misled.
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(re.sub(r'"pid": \d+', f'"pid": {os.getpid()}', rwlock.read_text()))
    assert "is busy" in finish(project, [sys.executable, "-m", "dvc", "repro"]).stderr
    done = finish(project)
    assert done.returncode == 0
    assert "headstart repro: .dvc/tmp/rwlock named no DVC that runs here, and is removed\n" in done.stdout


def test_a_second_start_is_refused_in_one_line(project: Path) -> None:
    with started(project) as repro:
        second = finish(project)
        about = f"on {socket.gethostname()} as process {repro.pid}"
        assert second.stderr == (
            f"error: the pipeline of this folder already runs {about}: wait for it, or stop it first\n"
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert repro.wait(20) == 0


def test_a_failure_is_a_failure_and_the_markers_of_earlier_ones_do_not_count(project: Path) -> None:
    old = {"stage": "finetune", "reason": "SIGTERM", "progress": 1, "host": "", "message": "old", "start": "earlier"}
    write_json(project / STOPPED, old)
    (project / "fake.json").write_text("{}")
    failed = finish(project)
    assert failed.returncode == 1
    assert "old" not in failed.stdout


def test_the_marker_of_a_rank_that_outlived_an_earlier_start_is_ignored(project: Path) -> None:
    old = {"stage": "finetune", "reason": "SIGTERM", "progress": 1, "host": "", "message": "old", "start": "earlier"}
    with started(project) as repro:
        write_json(project / STOPPED, old)
        for stage in [each for each in psutil.Process(repro.pid).children(recursive=True) if is_stage(each)]:
            stage.kill()
        assert repro.wait(20) == 1
    assert "old" not in (project / "out").read_text()


def test_the_loss_of_a_process_that_ended_the_last_start_is_reported(project: Path) -> None:
    message = "rank 0 on node1: no sign of life"
    marker = {"stage": "", "reason": "lost", "progress": 1, "host": "node2", "message": message, "start": "earlier"}
    write_json(project / STOPPED, marker)
    assert f"headstart repro: the start before this one ended: {message}\n" in finish(project).stdout
    assert "the start before" not in finish(project).stdout


def test_outside_of_a_project_it_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(REPRO, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: .dvc does not exist: run this in the project's folder\n")
    assert list(tmp_path.iterdir()) == []


def test_an_older_params_file_stops_it_in_one_line_that_names_the_command(project: Path) -> None:
    params = YAML(typ="safe").load(project / "params.yaml")
    del params["finetune"]["ema"], params["evaluate"]
    YAML().dump(params, project / "params.yaml")
    done = finish(project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("error: params.yaml:\n  finetune.ema, evaluate: missing; add them with `headstart params`\n")
    assert log(project) == []
    complete_params(project / "params.yaml")
    assert finish(project).returncode == 0


def test_a_launch_script_with_windows_line_ends_stops_it_in_one_line(project: Path) -> None:
    script = project / "slurm" / "launch.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_bytes(b"#!/bin/sh\r\nset -eu\r\n")
    answer = finish(project)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert answer.stderr.startswith("error: slurm/launch.sh: has Windows line ends")
