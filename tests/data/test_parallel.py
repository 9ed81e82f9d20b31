"""Work in other processes: the same results in order, bounded memory, and no process that outlives its parent."""

import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from headstart.core.errors import UserError
from headstart.data import parallel
from headstart.data.parallel import map_in_order
from helpers.waiting import wait_for_workers


def process_of(_: int) -> int:
    return os.getpid()


def slowly_doubled(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return 2 * number


def failing(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    time.sleep(20 if number > 7 else 0)
    return number


def test_results_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_workers(monkeypatch)
    assert list(map_in_order(slowly_doubled, range(30), workers=2, preload=["json"])) == list(range(0, 60, 2))


def test_tasks_are_consumed_only_as_fast_as_results(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_workers(monkeypatch)
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while taken < 40:
            taken += 1
            yield taken

    processes = set()
    for done, process in enumerate(map_in_order(process_of, tasks(), workers=2, preload=["json"]), start=1):
        assert taken <= done + 4
        processes.add(process)
    assert done == 40
    assert len(processes - {os.getpid()}) in (1, 2)


def test_little_work_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done before workers are ready: here they never are."""
    monkeypatch.setattr(parallel, "start_server", lambda *_: Event())
    assert set(map_in_order(process_of, range(5), workers=4, preload=["json"])) == {os.getpid()}
    assert list(map_in_order(process_of, [], workers=4, preload=["json"])) == []


def test_a_failure_does_not_wait_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_workers(monkeypatch)
    began = time.monotonic()
    with pytest.raises(ValueError, match="seven"):
        list(map_in_order(failing, range(12), workers=2, preload=["json"]))
    assert time.monotonic() - began < 15


def killed(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel kills one when memory runs out."""
    wait_for_workers(monkeypatch)
    with pytest.raises(UserError, match=r"^run\.workers: a worker process was killed, .*: use fewer, then start again"):
        list(map_in_order(killed, range(12), workers=2, preload=["json"]))


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), OSError(30, "Read-only file system")])
def test_without_semaphores_everything_runs_in_this_process(
    error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_lock(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", no_lock)  # of locks, and of the pool's queues
    ready = Event()
    ready.set()
    monkeypatch.setattr(parallel, "start_server", lambda *_: ready)
    assert set(map_in_order(process_of, range(9), workers=2, preload=[])) == {os.getpid()}
    assert (
        f"run.workers: all runs in one process, since /dev/shm is not there to write ({error.strerror})" in caplog.text
    )


def test_without_a_server_everything_runs_in_this_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was killed, or there is no room for its socket."""
    asked = Event()

    class NoServer:
        def set_forkserver_preload(self, _: list[str]) -> None:
            """Take the names."""

        def Process(self, **_: object) -> None:  # noqa: N802  (multiprocessing's)
            asked.set()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "get_context", lambda _: NoServer())
    numbers = map_in_order(process_of, range(30), workers=2, preload=["json"])
    assert next(numbers) == os.getpid()
    assert asked.wait(10)
    assert set(numbers) == {os.getpid()}
    assert capfd.readouterr().err == ""


KILLED = """
import os, signal, sys, time
sys.path[:0] = {folders!r}
import test_parallel
from pytest import MonkeyPatch
from headstart.data import parallel
if __name__ == "__main__":
    test_parallel.wait_for_workers(MonkeyPatch())
    for worker in parallel.map_in_order(test_parallel.waiting, range(9), workers=2, preload=["json"]):
        print(worker, flush=True)
"""


def waiting(number: int) -> int:
    time.sleep(60 if number > 2 else 0)
    return os.getpid()


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """SIGKILL needs a process of its own."""
    (tmp_path / "killed.py").write_text(KILLED.format(folders=[str(folder) for folder in Path(__file__).parents[:2]]))
    with subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        assert process.pid not in {int(process.stdout.readline()) for _ in range(2)}
        process.kill()
        process.communicate(timeout=20)  # waits for every process that still has the pipe open
