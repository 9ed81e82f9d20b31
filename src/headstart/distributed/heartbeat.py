"""Notices that a process of a stage has died or hangs, names it, and ends the other processes.

Slurm shows a job as RUNNING for ever when one of its nodes dies and comes back, and an all-reduce waits for ever for a
rank that is gone. So every rank writes heartbeats, with its progress, to a file of its own on the shared file system,
which does not need the network between the ranks. A single process is watched too, without a file, and so are the
processes that load images: what a DataLoader says of them becomes one line, and none outlives the stage.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import DistError

from headstart.core.errors import UserError, first_line
from headstart.core.io import write_json
from headstart.core.paths import BATCH_HEARTBEAT, HEARTBEATS
from headstart.core.run_state import UNDER_LOCK, slurm_job, write_stopped

logger = logging.getLogger(__name__)

PERIOD = 5.0
"""Seconds between two heartbeats."""
MAX_MISSED = 5
"""Heartbeats that a process may miss: file servers let readers wait."""
START_VARIABLES = (UNDER_LOCK, "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "MASTER_PORT")
"""Variables of the environment that distinguish a start from earlier ones."""
PEER_WORDS = ("gloo", "nccl", "connection")
"""One of them is in each plain RuntimeError of a call between ranks, such as gloo's."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: try again."""


@dataclass
class Heartbeat:
    """The last heartbeat of another process, and when it was seen to change, by this process's own clock."""

    path: Path
    start: str
    content: dict[str, Any] = field(default_factory=dict)
    changed: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        """Read the file; one that an earlier start left there is ignored."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content != self.content and content.get("start", self.start) == self.start:
                self.content, self.changed = content, time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Return whether it has not changed for too long."""
        return time.monotonic() - self.changed > MAX_MISSED * PERIOD


class Watchdog(threading.Thread):
    """Writes this rank's heartbeats, reads those of the others, and ends this process after too long without progress.

    ``timeout`` is in seconds; without ``steps``, in work that may take any time, a rank without a sign of life for so
    long counts. ``saved_steps`` are those of the saved checkpoint, for the marker of a lost process.
    """

    def __init__(self, rank: int, world: int, timeout: float, *, steps: bool = True) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._rank, self._timeout, self._steps, self.saved_steps = rank, timeout, steps, 0
        self._count, self._where = 0, "its start"
        self._start = ".".join(os.environ.get(name, "") for name in START_VARIABLES)
        others = (other for other in range(world) if other != rank)
        self._heartbeats = {other: Heartbeat(HEARTBEATS / f"{other}.json", self._start) for other in others}
        self._stopped, self._write_lock = threading.Event(), threading.Lock()
        self._turn, self._failure = 0, dict[str, str]()

    def beat(self, where: str) -> None:
        """Record progress; two assignments, so that it can be called at every step."""
        self._count, self._where = self._count + 1, where

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def run(self) -> None:
        """Write and read heartbeats until stopped; the thread does this."""
        period = min(PERIOD, self._timeout / 5)
        # The periods are counted, so that the time in which this process was suspended is no hang.
        count, waited = self._count, 0.0
        while True:
            self._write()
            self._read()
            if self._count != count if self._steps else not self._any_lost():
                count, waited = self._count, 0.0
            elif waited > self._timeout:
                self._exit(self._diagnosis())
            if self._stopped.wait(period):
                return
            waited += period

    def connection_lost(self, error: Exception) -> None:
        """Find out why a call between the ranks failed; end this process, unless a rank reports an error of its own."""
        for _ in range(MAX_MISSED + 1):
            time.sleep(PERIOD)
            self._read()
            if any("failed" in heartbeat.content for heartbeat in self._heartbeats.values()):
                return
        self._exit(f"{self._diagnosis()} ({first_line(error)})")

    def failed(self, error: BaseException) -> None:
        """Report to the other ranks that this one ends because of an error of its own."""
        if not isinstance(error, UserError):  # which the program prints
            logger.error("rank %d on %s: %s: %s", self._rank, socket.gethostname(), type(error).__name__, error)
        self._failure = {"failed": str(error)}
        self._write()
        _requeue_if_batch_node_is_gone()

    def _write(self) -> None:
        if not self._heartbeats:  # nobody reads them
            return
        with self._write_lock:  # two threads write, and the failure must be in what is written last
            self._turn += 1
            content = {"host": socket.gethostname(), "pid": os.getpid(), "start": self._start, "turn": self._turn}
            content |= {"count": self._count, "where": self._where, **self._failure}
            with contextlib.suppress(OSError):  # a full disk, or a file server that is away for a while
                write_json(HEARTBEATS / f"{self._rank}.json", content)

    def _read(self) -> None:
        for heartbeat in self._heartbeats.values():
            heartbeat.read()

    def _any_lost(self) -> bool:
        return any(heartbeat.is_silent for heartbeat in self._heartbeats.values())

    def _diagnosis(self) -> str:
        """Name the ranks to blame: those that are silent, else those that are behind."""
        if not self._heartbeats:
            loaders = ", ".join(str(process.pid) for process in multiprocessing.active_children())
            what = f"no progress for {self._timeout:.0f} s on {socket.gethostname()}, at {self._where}"
            what += f" (its loading processes are {loaders}): see" if loaders else ": see"
            what += " whether its disks, devices and processes answer; if a step takes that long, raise it"
            return f"run.timeout_minutes: {what}"
        waiting = f"rank {self._rank} on {socket.gethostname()} waits at {self._where}"
        if silent := [rank for rank, heartbeat in self._heartbeats.items() if heartbeat.is_silent]:
            return f"{', '.join(map(self._describe, silent))}: no sign of life, and {waiting}"
        if behind := [rank for rank, each in self._heartbeats.items() if each.content.get("count", 0) < self._count]:
            places = (f"{self._describe(rank)} at {self._heartbeats[rank].content.get('where')}" for rank in behind)
            return f"no progress for {self._timeout:.0f} s: {', '.join(places)} stands still, and {waiting}"
        return f"no progress for {self._timeout:.0f} s, and all ranks live: {waiting}; is the network down?"

    def _describe(self, rank: int) -> str:
        host = self._heartbeats[rank].content.get("host")
        return f"rank {rank} on {host}" if host else f"rank {rank}, which never reported"

    def _exit(self, message: str) -> None:
        """End this process, even within a call that never returns; the lowest rank that lives gives the reason."""
        try:
            if all(heartbeat.is_silent for rank, heartbeat in self._heartbeats.items() if rank < self._rank):
                logger.error("error: %s", message)
                with contextlib.suppress(OSError):
                    write_stopped("", "lost", self.saved_steps, message)
                _requeue_if_batch_node_is_gone()
            else:
                time.sleep(2 * PERIOD)
        finally:
            os._exit(EXIT_CODE)


@contextlib.contextmanager
def watch_heartbeats(rank: int, world: int, minutes: float, *, steps: bool = True) -> Iterator[Watchdog]:
    """Watch the ranks of a stage, which end after so many minutes without progress, and their loading processes.

    ``steps`` as in ``Watchdog``.

    Raises:
        UserError: a loading process died, or gave no batch in time.
    """
    watchdog = Watchdog(rank, world, 60 * minutes, steps=steps)
    watchdog.start()
    try:
        with _ending_loaders():
            yield watchdog
    except Exception as error:
        is_connection_error = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in PEER_WORDS)
        if world > 1 and (is_connection_error or isinstance(error, DistError)):
            watchdog.connection_lost(error)
        if world > 1:
            watchdog.failed(error)
        raise
    finally:
        watchdog.stop()


@contextlib.contextmanager
def _ending_loaders() -> Iterator[None]:
    """Kill the loading processes after any error, since they ignore SIGTERM; name the one that a DataLoader blames."""
    try:
        yield
    except BaseException as error:
        loaders = multiprocessing.active_children()
        if loaders:
            # Else torch's handler would raise an error of its own for each one that is killed.
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for process in loaders:
                process.kill()
                process.join(PERIOD)
            signal.signal(signal.SIGCHLD, handler)
        if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader"):
            raise
        if "timed out" in str(error):
            pids = ", ".join(str(process.pid) for process in loaders)
            what = (
                f"one of the loading processes {pids} is stuck: see whether the disk of data/prepared answers, or raise"
            )
            raise UserError(f"run.workers: {first_line(error)}: {what} run.timeout_minutes") from error
        what = "a kill by the system means that memory ran out: free some, or use fewer or 0"
        raise UserError(f"run.workers: {first_line(error).rstrip('. ')}: {what}") from error


def _requeue_if_batch_node_is_gone() -> None:
    """Requeue the Slurm job where the node of its batch script, which would do that, has died."""
    batch = Heartbeat(BATCH_HEARTBEAT, "")
    batch.read()
    is_own_job = batch.content.get("job") == os.environ.get("SLURM_JOB_ID")
    if slurm_job() is None or not is_own_job or batch.content.get("host") == socket.gethostname():
        return
    before = batch.changed
    while batch.changed == before and not batch.is_silent:
        time.sleep(1)
        batch.read()
    if batch.is_silent:
        logger.error("the node of the batch script is gone: requeueing the job")
        subprocess.run(["scontrol", "requeue", str(slurm_job())], check=False, timeout=60)  # noqa: S607
