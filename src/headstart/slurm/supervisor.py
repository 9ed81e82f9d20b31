"""DVC as a child process: signals are forwarded to the stage that it runs, and what hangs after a loss is killed.

DVC dies of a signal at once while its stage runs on. So signals go to the stage, which saves and exits; then DVC does.
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

FORWARDED: tuple[int, ...] = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
POLL_S = 1
HEARTBEAT_S = 10
BETWEEN_STAGES_S = 10
"""How long DVC may take to start its next stage, or to exit, after a signal."""
AFTER_LOSS_S = 30
"""How long a stage may take to exit after it lost a process: srun can wait for a dead node for ever."""
SHELLS = {"ash", "bash", "busybox", "dash", "fish", "ksh", "ksh93", "mksh", "sh", "tcsh", "zsh"}


def run_dvc(arguments: list[str], start: str) -> tuple[int, list[int]]:
    """Run DVC until it and its stage have exited, and forward the signals that this process receives.

    They go to the stage that runs and to any that starts later; where none starts, DVC is interrupted. The token
    ``start`` identifies this start in the markers of its stages.

    Returns:
        DVC's exit code, negative for a signal that it died of, and the signals received, in their order.
    """
    arrived: SimpleQueue[int] = SimpleQueue()
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda number, _: arrived.put(number))
    pipeline, began, beats = _Pipeline(arguments, start), time.monotonic(), 0
    received: list[int] = []
    try:
        while pipeline.is_running():
            pipeline.forward_signal()
            if time.monotonic() - began >= beats * HEARTBEAT_S:
                beats += 1
                _write_heartbeat(beats)
            pipeline.kill_after_loss()
            with contextlib.suppress(Empty):
                number = arrived.get(timeout=POLL_S)
                if number in FORWARDED:
                    received.append(number)
                    pipeline.request_stop(number)
    finally:
        BATCH_HEARTBEAT.unlink(missing_ok=True)
    return pipeline.dvc.returncode, received


class _Pipeline:
    """A DVC process, and the processes that its shell started for the stage: srun, or the stage itself."""

    def __init__(self, arguments: list[str], start: str) -> None:
        self._start = start
        # setpriv: DVC does not outlive this process, nor does a stage that replaced its shell. process_group: a
        # terminal's Ctrl-C reaches this process alone, which forwards it to the stage.
        prefix = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        environment = {"VIRTUAL_ENV": sys.prefix} if sys.prefix != sys.base_prefix else {}
        self.dvc = subprocess.Popen(
            [*prefix, sys.executable, "-m", "dvc", *arguments],
            env=environment | os.environ | {UNDER_LOCK: start},
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        self._process = psutil.Process(self.dvc.pid)
        self._stage: set[psutil.Process] = set()
        self._signalled: set[psutil.Process] = set()
        self._signal: int | None = None
        self._stage_seen = self._before_loss = time.monotonic()

    def is_running(self) -> bool:
        """Return whether DVC or its stage runs; a stage outlives a DVC that was killed until it has saved."""
        self._stage = {process for process in self._stage if _is_alive(process)}
        if self.dvc.poll() is None and not self._stage:
            with contextlib.suppress(psutil.Error):
                shells = [child for child in self._process.children() if "DVC_STAGE" in child.environ()]
                self._stage = {process for shell in shells for process in _below_shells(shell)}
        return self.dvc.poll() is None or bool(self._stage)

    def request_stop(self, number: int) -> None:
        """Send the signal to every stage from now on, also to one that was already signalled."""
        self._signal, self._stage_seen = number, time.monotonic()
        self._signalled.clear()

    def forward_signal(self) -> None:
        """Send a requested signal to the stage, or interrupt DVC where there has been no stage for too long."""
        if self._signal is None:
            if self.dvc.poll() is None:
                return
            self._signal = signal.SIGTERM  # DVC is gone, and nobody would record what the stage makes
        for process in self._stage - self._signalled:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(self._signal)
            self._signalled.add(process)
        if self._stage:
            self._stage_seen = time.monotonic()
        elif time.monotonic() - self._stage_seen > BETWEEN_STAGES_S:
            self.dvc.send_signal(signal.SIGINT)
            self._stage_seen = time.monotonic()

    def kill_after_loss(self) -> None:
        """Kill DVC and the stage if they still run some time after the stage's marker says that it lost a process."""
        marker = read_stopped(self._start)
        if marker is None or marker["reason"] != "lost":
            self._before_loss = time.monotonic()
        elif time.monotonic() - self._before_loss > AFTER_LOSS_S:
            for process in {self._process, *self._stage}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in process.children(recursive=True):
                        child.kill()
                    process.kill()


def _write_heartbeat(count: int) -> None:
    """Show the ranks on other nodes that the node of the batch script is alive."""
    sender = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    with contextlib.suppress(OSError):  # a full disk must not end what is running
        write_json(BATCH_HEARTBEAT, sender | {"count": count})


def _below_shells(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the process, or what it runs where it is a shell: one that waits (dash) would itself die of a signal."""
    if Path(process.exe()).name not in SHELLS:
        yield process
        return
    for child in process.children():
        yield from _below_shells(child)


def _is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has exited stays a zombie where nobody waits for it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
