"""`python -m benchmarks accuracy`: its grid, which goes on where it stopped, and its figures."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest
from benchmarks.accuracy import grid, results
from benchmarks.accuracy.grid import Contestant, Records, fill, fitting
from benchmarks.accuracy.job import Job, names

from helpers.images import draw_brightness_classes

KEY = {"set": "birds", "size": 64, "contestant": "fastai", "budget": 1, "seed": 0}
JOB = Job("images", "weights", "model", 64, 0, 0, "work")


def run_of(amount: int, seconds: float, accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    figures = {"amount": amount, "seconds": seconds, "accuracy": accuracy, "nll": 1 - accuracy, "epochs": amount}
    return KEY | figures | changes


class Runs:
    """Stands for the processes: 10 s of start-up, 4 s an epoch."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.error: str | None = None

    def __call__(self, contestant: Contestant, job: Job) -> dict[str, Any]:  # noqa: ARG002  (a runner's)
        self.done.append((job.amount, job.seed))
        return {"error": self.error} if self.error else {"seconds": 10 + 4 * job.amount, "accuracy": 0.5, "nll": 1.0}


@pytest.fixture
def records(tmp_path: Path) -> Callable[[], Records]:
    return lambda: Records(tmp_path / "records.jsonl")


@pytest.mark.parametrize(
    ("rehearsed", "budget", "amount"),
    [
        ([(1, 14.0), (3, 22.0)], 60, 12),  # 10 s and 4 s an epoch
        ([(1, 14.0), (3, 22.0)], 58, 12),  # exactly
        ([(1, 14.0), (3, 22.0)], 57.9, 11),
        ([(1, 14.0), (3, 22.0)], 13, 0),
        ([(30, 52.0)], 60, 38),  # 22 s beyond a time limit of 30 s
        ([], 60, 60),
    ],
)
def test_the_largest_amount_that_fits(rehearsed: list[tuple[int, float]], budget: float, amount: int) -> None:
    assert fitting(rehearsed, budget) == amount


def test_a_grid_goes_on_where_it_stopped(records: Callable[[], Records]) -> None:
    run, contestant = Runs(), Contestant("fastai", "fine_tune")
    fill(records(), contestant, JOB, KEY, run)
    assert run.done == [(1, 0), (3, 0), (12, 0)]
    fill(records(), contestant, JOB, KEY, run)
    assert len(run.done) == 3
    fill(records(), contestant, Job(*("",) * 3, 64, 0, 1, ""), KEY | {"seed": 1}, run)  # rehearsed for all seeds
    assert run.done[3:] == [(12, 1)]
    fill(records(), contestant, JOB, KEY | {"budget": 0.2}, run)
    assert len(run.done) == 4
    assert records().all()[-1] == KEY | {"budget": 0.2, "fits": False}


def test_a_longer_run_says_what_an_epoch_takes(records: Callable[[], Records]) -> None:
    run, contestant = Runs(), Contestant("fastai", "fine_tune")
    records().add(run_of(12, 62.5) | {"epochs": 12})  # 4.5 s an epoch, unlike the rehearsals'
    records().add(run_of(90, 65.0) | {"epochs": 14})  # stopped by itself
    fill(records(), contestant, JOB, KEY | {"budget": 2.0}, run)
    assert run.done == [(1, 0), (3, 0), (25, 0)]  # 27 by the rehearsals


def test_a_run_that_failed_runs_again(records: Callable[[], Records]) -> None:
    run, contestant = Runs(), Contestant("autogluon", "fit", rehearsals=(5,))
    run.error = "MemoryError"
    fill(records(), contestant, JOB, KEY, run)
    assert records().all()[-1] == KEY | {"error": "MemoryError"}
    run.error = None
    fill(records(), contestant, JOB, KEY, run)
    assert len(run.done) == 3
    assert "accuracy" in results.latest(records().all())[0]


def test_a_line_cut_off_by_a_crash_is_left_out(records: Callable[[], Records]) -> None:
    records().add(run_of(3, 20))
    with records().path.open("a", encoding="utf-8") as file:
        file.write('\n{"set": "birds", "acc')
    records().add(run_of(4, 20))
    assert [each["amount"] for each in records().all()] == [3, 4]


def test_a_process_and_what_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    package = tmp_path / "root" / "benchmarks"
    (package / "accuracy").mkdir(parents=True)
    (package / "accuracy/job.py").symlink_to(Path(grid.__file__).with_name("job.py"))
    answer = "Answers(['dog/4.png', 'cat/3.png'], ['dog', 'cat'], [[0.75, 0.25], [0.5, 0.5]], 7)"
    stand_in = (
        "import subprocess\nfrom benchmarks.accuracy.job import Answers\n"
        "def train(job):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
        f"    return {answer}\n"
    )
    (package / "accuracy/stand_in.py").write_text(stand_in, encoding="utf-8")
    monkeypatch.setattr(grid, "ROOT", tmp_path / "root")
    run = grid.runner(Path(sys.executable), 60, tmp_path / "logs")
    job = Job(str(tmp_path), "", "", 64, 1, 0, str(tmp_path / "run"))
    found = run(Contestant("stand_in", "train"), job)
    assert found.pop("seconds") > 0
    assert found == {"images": 2, "accuracy": 0.5, "nll": pytest.approx(-np.log(0.375) / 2, abs=1e-5), "epochs": 7}
    assert not Path(job.work).exists()
    left = int((tmp_path / "pid").read_text(encoding="utf-8"))
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(left)
        while child.status() != psutil.STATUS_ZOMBIE:  # killed with its parent: dead within no time, or after 60 s
            assert time.time() - child.create_time() < 50
            time.sleep(0.1)
    assert "no attribute 'missing'" in run(Contestant("stand_in", "missing"), job)["error"]
    assert grid.runner(Path(sys.executable), 0.01, tmp_path / "logs")(Contestant("stand_in", "train"), job) == {
        "error": "ended after 0 s",
        "log": mock.ANY,
    }


def test_answers_must_be_those_of_the_images() -> None:
    files = [Path("test/cat/1.png"), Path("test/dog/2.png")]
    good = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = results.score(files, np.array(names(files)), np.array(["cat", "dog"]), good)
    epsilon = np.finfo(np.float32).eps
    assert found == {"images": 2, "accuracy": 0.5, "nll": pytest.approx(-np.log(epsilon) / 2, abs=1e-5)}
    for answered, probabilities in (
        (["cat/1.png", "cat/1.png"], good),
        (["cat/1.png", "dog/3.png"], good),
        (names(files), good / 2),
        (names(files), good * np.nan),
    ):
        with pytest.raises(ValueError, match=r"test images|probabilities"):
            results.score(files, np.array(answered), np.array(["cat", "dog"]), probabilities)


def test_tables_and_curves_say_what_was_run(tmp_path: Path) -> None:
    records: list[results.Record] = [
        {"machine": {}},
        KEY | {"rehearsal": 1, "seconds": 14.0},
        run_of(12, 58, 0.5),
        run_of(12, 57, 0.8),  # again: the last counts
        run_of(11, 64, 0.9, seed=1),
        run_of(10, 55, 0.95, contestant="headstart"),
        KEY | {"contestant": "timm", "fits": False},
        KEY | {"contestant": "autogluon", "error": "no | memory"},
    ]
    results.write(records, tmp_path)
    first, *others = (tmp_path / "accuracy.md").read_text(encoding="utf-8").splitlines()
    assert first.startswith("| set | minutes | contestant | accuracy | NLL |")
    start = "| birds, 64 px | 1 |"
    fastai = "85.0 (80.0 to 90.0) | 0.150 (0.100 to 0.200) | 1.01 (0.95 to 1.07) | 12 (11 to 12) epochs"
    assert others[1:] == [
        f"{start} headstart | **95.0** | 0.050 | 0.92 | 10 epochs | 1 |  |",
        f"{start} fastai | {fastai} | 2 | 1 of 2 overran |",
        f"{start} timm | | | | | | no epoch fits |",
        f"{start} autogluon | | | | | | failed: no / memory |",
        "",
        "| set | minutes | best peer | accuracy, points ahead | NLL, lower by |",
        "|---|---|---|---|---|",
        f"{start} fastai | +10.0 | +0.100 |",
    ]
    svg = (tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("birds, 64 px", "headstart", "fastai"))
    assert "timm" not in svg


def test_a_set_is_split_once(tmp_path: Path) -> None:
    draw_brightness_classes(tmp_path / "set", ("dark", "light"))
    images = grid.split_set(tmp_path / "set", tmp_path / "sets" / "set")
    job = Job(str(images), "", "", 64, 0, 0, "")
    assert job.classes == ["dark", "light"]
    counts = [len(job.files(split)) for split in ("train", "val", "test")]
    assert sum(counts) == 40
    assert min(counts) > 0
    made = images.stat().st_mtime_ns
    assert grid.split_set(tmp_path / "set", images) == images
    assert images.stat().st_mtime_ns == made
