"""Notices that a process of a stage has died or hangs, says which, and ends the others.

Slurm shows a job as RUNNING for ever when one of its nodes dies and comes back, and an all-reduce waits for whoever is
gone. So every process says that it lives, and how far it is, in a file of its own on the file system that all share:
what a broken network needs not carry.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.paths import BATCH_HEARTBEAT, HEARTBEATS
from headstart.core.run_state import UNDER_LOCK, slurm_job, write_stopped

logger = logging.getLogger(__name__)

PERIOD = 5.0
"""Seconds between two signs of life."""
MISSED = 5
"""Signs that a process may miss: file servers let readers wait."""
START = (UNDER_LOCK, "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "MASTER_PORT")
"""What of the environment sets a start apart from earlier ones."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: try again."""


@dataclass
class Heartbeat:
    """The last sign of life of a process, and when it was seen to change, by this process's own clock."""

    path: Path
    start: str
    content: dict[str, Any] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Read it; what an earlier start left there says nothing."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content != self.content and content.get("start", self.start) == self.start:
                self.content, self.seen = content, time.monotonic()

    @property
    def silent(self) -> bool:
        """Say whether it has not changed for a while."""
        return time.monotonic() - self.seen > MISSED * PERIOD


class Watchdog(threading.Thread):
    """Writes this process's signs of life, reads the others', and ends this process when it stands still too long."""

    def __init__(self, rank: int, world: int, timeout: float) -> None:
        """Begin to count.

        Args:
            rank: this process's.
            world: how many there are.
            timeout: seconds without progress after which it ends.
        """
        super().__init__(name="watchdog", daemon=True)
        self._rank, self._timeout = rank, timeout
        self._count, self._where, self._moved = 0, "its start", time.monotonic()
        self._start = ".".join(os.environ.get(name, "") for name in START)
        self._signs = {
            other: Heartbeat(HEARTBEATS / f"{other}.json", self._start) for other in range(world) if other != rank
        }
        self._over, self._telling = threading.Event(), threading.Lock()
        self._turn, self._failed = 0, dict[str, str]()
        self.saved_steps = 0
        """Optimiser steps that the saved state contains."""

    def beat(self, where: str) -> None:
        """Note progress; cheap enough for every step."""
        self._count, self._where, self._moved = self._count + 1, where, time.monotonic()

    def stop(self) -> None:
        """End the watch."""
        self._over.set()

    def run(self) -> None:
        """Watch."""
        while True:
            self._tell()
            self._look()
            if time.monotonic() - self._moved > self._timeout:
                self._leave(self._verdict())
            if self._over.wait(min(PERIOD, self._timeout / 5)):
                return

    def connection_lost(self, error: Exception) -> None:
        """Find out why a call between the ranks failed; end here, unless a rank said that it failed by itself."""
        for _ in range(MISSED + 1):
            time.sleep(PERIOD)
            self._look()
            if any("failed" in sign.content for sign in self._signs.values()):
                return
        self._leave(f"{self._verdict()} ({str(error).splitlines()[0]})")

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank ends by its own fault."""
        if not isinstance(error, UserError):  # which the program says
            logger.error("rank %d on %s: %s: %s", self._rank, socket.gethostname(), type(error).__name__, error)
        self._failed = {"failed": str(error)}
        self._tell()
        if self._batch_is_gone():
            self._requeue()

    def _tell(self) -> None:
        with self._telling:  # so that the last of two threads to write is the last to know
            self._turn += 1
            sign = {"host": socket.gethostname(), "pid": os.getpid(), "start": self._start, "turn": self._turn}
            sign |= {"count": self._count, "where": self._where, **self._failed}
            with contextlib.suppress(OSError):  # a full disk, or a file server that is away for a while
                write_json(HEARTBEATS / f"{self._rank}.json", sign)

    def _look(self) -> None:
        for sign in self._signs.values():
            sign.look()

    def _verdict(self) -> str:
        """Say who is to blame: those who are silent, else those who are behind."""
        waits = f"rank {self._rank} on {socket.gethostname()} waits at {self._where}"
        if silent := [rank for rank, sign in self._signs.items() if sign.silent]:
            return f"{', '.join(map(self._named, silent))}: no sign of life, and {waits}"
        behind = [rank for rank, sign in self._signs.items() if sign.content.get("count", 0) < self._count]
        if behind:
            places = ", ".join(f"{self._named(rank)} at {self._signs[rank].content.get('where')}" for rank in behind)
            return f"no progress for {self._timeout:.0f} s: {places} stands still, and {waits}"
        return f"no progress for {self._timeout:.0f} s, and all ranks live: {waits}; is the network down?"

    def _named(self, rank: int) -> str:
        host = self._signs[rank].content.get("host")
        return f"rank {rank} on {host}" if host else f"rank {rank}, which never came"

    def _leave(self, message: str) -> None:
        """End: the process may stand in a call that nothing else can end. The first of those that live says why."""
        try:
            if all(sign.silent for rank, sign in self._signs.items() if rank < self._rank):
                logger.error("error: %s", message)
                with contextlib.suppress(OSError):
                    write_stopped("", "lost", self.saved_steps, message)
                if self._batch_is_gone():
                    self._requeue()
            else:
                time.sleep(2 * PERIOD)
        finally:
            os._exit(EXIT_CODE)

    def _batch_is_gone(self) -> bool:
        """Say whether the batch script of a Slurm job, which would requeue it, gives no sign of life any more."""
        batch = Heartbeat(BATCH_HEARTBEAT, "")
        batch.look()
        mine = batch.content.get("job") == os.environ.get("SLURM_JOB_ID")
        if slurm_job() is None or not mine or batch.content.get("host") == socket.gethostname():
            return False
        before = batch.seen
        while batch.seen == before and not batch.silent:
            time.sleep(1)
            batch.look()
        return batch.silent

    @staticmethod
    def _requeue() -> None:
        logger.error("the node of the batch script is gone: requeueing the job")
        subprocess.run(["scontrol", "requeue", str(slurm_job())], check=False, timeout=60)  # noqa: S607


@contextlib.contextmanager
def watch_heartbeats(rank: int, world: int, minutes: float) -> Iterator[Watchdog]:
    """Watch the ranks of a stage for a while; one alone is not watched.

    Args:
        rank: this process's.
        world: how many there are.
        minutes: without progress after which they end.
    """
    watchdog = Watchdog(rank, world, 60 * minutes)
    if world == 1:
        yield watchdog
        return
    watchdog.start()
    try:
        yield watchdog
    except Exception as error:
        if isinstance(error, RuntimeError) and _of_connections(error):
            watchdog.connection_lost(error)
        watchdog.failed(error)
        raise
    finally:
        watchdog.stop()


def _of_connections(error: RuntimeError) -> bool:
    """Say whether an error comes from a call between ranks: gloo's are plain RuntimeErrors."""
    names = {base.__name__ for base in type(error).__mro__}
    return "DistError" in names or any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))
