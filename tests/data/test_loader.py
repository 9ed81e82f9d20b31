"""Processes that load batches: how many shared memory has room for, and what happens when one is lost."""

import multiprocessing
import os
import select
import shutil
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from headstart.core.errors import UserError
from headstart.data import loader
from headstart.data.loader import in_shared_memory, loader_arguments
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.process_group import ProcessGroup
from helpers.images import params

Usage = namedtuple("Usage", ["total", "used", "free"])
MB = 10**6


def arguments(workers: int, *, processes: int = 1) -> dict[str, Any]:
    run = params({"run.workers": workers}).run
    return loader_arguments(run, ProcessGroup(world=processes, local_world=processes), MB)


@pytest.mark.parametrize(
    "case",
    [(64, 1, 4, 4), (10, 1, 4, 3), (10, 2, 4, 1), (5, 1, 4, 1), (4.9, 1, 4, 0), (0, 1, 1, 0), (0, 1, 0, 0)],
)
def test_as_many_load_as_shared_memory_has_room_for(
    case: tuple[float, int, int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free, processes, asked, given = case
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * MB, 0, int(free * MB)))
    settings = arguments(asked, processes=processes)
    assert settings["num_workers"] == given
    assert settings["timeout"] == (480 if given else 0)
    said = (
        f"run.workers: {given} instead of {asked}, since /dev/shm has {free / processes:.0f} MB for batches of 1.0 MB"
    )
    assert (said in caplog.text) == (given < asked)


def test_without_shared_memory_one_process_loads_and_an_unlimited_one_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path / "missing")
    assert arguments(2)["num_workers"] == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))  # a tmpfs with size=0
    assert arguments(2)["num_workers"] == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path / "missing")
    assert arguments(2)["num_workers"] == 2


def test_where_processes_cannot_wait_for_each_other_one_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "has_semaphores", lambda: False)
    assert arguments(2)["num_workers"] == 0


def load(batches: Any, read: Any, *, during: Any = lambda _: None, **changes: Any) -> list[Any]:
    """Load each batch by one process while a stage's processes are watched; ``during`` is called with its pid."""
    settings: Any = arguments(1) | changes
    loading = iter(DataLoader(batches, collate_fn=read, **settings))
    with watch_heartbeats(0, 1, minutes=10):
        (process,) = multiprocessing.active_children()
        during(process.pid)
        return list(loading)


def as_batch(number: int) -> Any:
    return in_shared_memory((torch.tensor([number]), None))[0]


def test_batches_come_through_shared_memory() -> None:
    batches = load([1, 2, 3], as_batch)
    assert [int(batch) for batch in batches] == [1, 2, 3]
    assert all(batch.is_shared() for batch in batches)
    assert not as_batch(1).is_shared()  # here nobody else reads it


def test_shared_memory_that_fills_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"UserError: /dev/shm is full, and .* run\.workers to fewer or 0"):
        load([1, 2, 3], as_batch)
    assert not multiprocessing.active_children()


def slow(number: int) -> int:
    time.sleep(30)
    return number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_loading_process_that_dies_is_named(number: int) -> None:
    with pytest.raises(UserError, match=r"^run\.workers: DataLoader worker \(pid.*\d+\) .*: a kill by the system"):
        load([1, 2, 3], slow, during=lambda pid: os.kill(pid, number))
    assert not multiprocessing.active_children()


def test_one_that_hangs_is_named_and_killed_though_it_ignores_sigterm() -> None:
    pids = list[int]()
    said = r"timed out after 0\.48 seconds: one of .* \d+ is stuck: .*timeout_minutes"
    with pytest.raises(UserError, match=said) as error:
        load([1], slow, timeout=0.48, during=pids.append)
    assert str(pids[0]) in str(error.value)
    assert not multiprocessing.active_children()
    handler = signal.getsignal(signal.SIGCHLD)
    assert getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"  # it is back


def test_another_error_stays_what_it_is_and_ends_the_loading_processes() -> None:
    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load([1], slow, during=fail)
    assert not multiprocessing.active_children()


def test_a_loading_process_dies_with_its_parent() -> None:
    """With processes of its own: the parent is killed."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        if not os.fork():
            loader._start_worker(0)  # noqa: SLF001
            os.write(write, b"x")
            time.sleep(60)
        time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([read], [], [], 10)[0]  # its end of the pipe is closed
    assert os.read(read, 1) == b""
    os.close(read)
