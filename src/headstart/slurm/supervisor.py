"""DVC as a child process: signals handed to the stage that it runs, a heartbeat, an end to what hangs.

DVC dies of a signal at once while its stage goes on. So signals go to the stage, which saves and fails, DVC with it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil

from headstart.core.io import write_json
from headstart.core.paths import BATCH_HEARTBEAT
from headstart.core.run_state import UNDER_LOCK, read_stopped

HANDED_ON: tuple[int, ...] = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PERIOD_S = 1
HEARTBEAT_S = 10
BETWEEN_STAGES_S = 10
"""How long DVC may take to come to its next stage, or to its end, after a signal."""
LOST_S = 30
"""How long a stage may take to end after a process of it was lost: srun can wait for a dead node for ever."""
SHELLS = {"ash", "bash", "busybox", "dash", "fish", "ksh", "ksh93", "mksh", "sh", "tcsh", "zsh"}


def run_dvc(arguments: list[str], start: str) -> tuple[int, list[int]]:
    """Run DVC until it and its stage have ended, handing on the signals that come to this process.

    They go to the stage of the moment and to any after it; where none comes, DVC is interrupted.

    Args:
        arguments: DVC's.
        start: a token that sets this start apart, for the markers of its stages.

    Returns:
        DVC's exit code, negative for a signal that it died of, and the signals that came, in their order.
    """
    arrived: SimpleQueue[int] = SimpleQueue()
    for number in (*HANDED_ON, signal.SIGCHLD):
        signal.signal(number, lambda number, _: arrived.put(number))
    run, heartbeat = _Run(arguments, start), _Heartbeat()
    received: list[int] = []
    try:
        while run.lives():
            run.hand_on()
            heartbeat.beat()
            run.end_what_was_lost()
            with contextlib.suppress(Empty):
                number = arrived.get(timeout=PERIOD_S)
                if number in HANDED_ON:
                    received.append(number)
                    run.begin_to_stop(number)
    finally:
        BATCH_HEARTBEAT.unlink(missing_ok=True)
    return run.dvc.returncode, received


class _Run:
    """A DVC, and the processes that its shell started for the stage: srun, or the stage itself."""

    def __init__(self, arguments: list[str], start: str) -> None:
        self._start = start
        # DVC does not outlive this process, nor does a stage that its shell became. A terminal's Ctrl-C comes to this
        # process alone, and from here to the stage.
        parent = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        python = {"VIRTUAL_ENV": sys.prefix} if sys.prefix != sys.base_prefix else {}
        self.dvc = subprocess.Popen(
            [*parent, sys.executable, "-m", "dvc", *arguments],
            env=python | os.environ | {UNDER_LOCK: start},
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        self._process = psutil.Process(self.dvc.pid)
        self._stage: set[psutil.Process] = set()
        self._told: set[psutil.Process] = set()
        self._signal: int | None = None
        self._seen = self._lost = time.monotonic()

    def lives(self) -> bool:
        """Say whether DVC or its stage has not ended; a stage outlives a DVC that was killed until it has saved."""
        self._stage = {process for process in self._stage if _lives(process)}
        if self.dvc.poll() is None and not self._stage:
            with contextlib.suppress(psutil.Error):
                started = [child for child in self._process.children() if "DVC_STAGE" in child.environ()]
                self._stage = {process for child in started for process in _below_shells(child)}
        return self.dvc.poll() is None or bool(self._stage)

    def begin_to_stop(self, number: int) -> None:
        """Have every stage from now on told, the one of the moment once more if it was told before."""
        self._signal, self._seen = number, time.monotonic()
        self._told.clear()

    def hand_on(self) -> None:
        """Tell the stage of the signal that came, or DVC where there is none for too long."""
        if self._signal is None and self.dvc.poll() is not None:
            self._signal = signal.SIGTERM  # no DVC is left that would note what the stage makes
        if self._signal is None:
            return
        for process in self._stage - self._told:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(self._signal)
            self._told.add(process)
        if self._stage:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > BETWEEN_STAGES_S:
            self.dvc.send_signal(signal.SIGINT)
            self._seen = time.monotonic()

    def end_what_was_lost(self) -> None:
        """Kill all that has not ended by itself some time after the stage said that a process of it was lost."""
        marker = read_stopped(self._start)
        if marker is None or marker["reason"] != "lost":
            self._lost = time.monotonic()
        elif time.monotonic() - self._lost > LOST_S:
            for process in {self._process, *self._stage}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in process.children(recursive=True):
                        child.kill()
                    process.kill()


class _Heartbeat:
    """Tells ranks on other nodes that the node of the batch script lives."""

    def __init__(self) -> None:
        self._count, self._next = 0, time.monotonic()

    def beat(self) -> None:
        if time.monotonic() < self._next:
            return
        self._count, self._next = self._count + 1, time.monotonic() + HEARTBEAT_S
        about = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        with contextlib.suppress(OSError):  # a full disk must not end what is running
            write_json(BATCH_HEARTBEAT, about | {"count": self._count})


def _below_shells(process: psutil.Process) -> Iterator[psutil.Process]:
    """Return what a shell runs, or the process itself where it is none.

    DVC starts each command by a shell. Some become the command (bash), others wait for it and die of signals (dash).
    """
    if Path(process.exe()).name not in SHELLS:
        yield process
        return
    for child in process.children():
        yield from _below_shells(child)


def _lives(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended stays a zombie where nobody waits for it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
