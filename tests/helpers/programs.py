"""Programs of the package as real processes that need not import torch anew.

A fresh interpreter takes seconds of a core to import torch, Lightning and timm. Here one process has imported them, and
each program is a fork of it that runs the module as ``python -m MODULE`` would. What tests need a process for is all
there: a pid, signals, standard output, an exit code, and nothing shared with the test but files. OMP_NUM_THREADS and
what else is read when torch is imported are those of the first program.
"""

import atexit
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

IMPORTED = (
    "headstart.distributed.process_group",
    "headstart.features.extract",
    "headstart.stages.program",
    "headstart.training.autotune",
    "headstart.training.trainer",
    "headstart.tracking.wandb_run",
)


class Program:
    """A running program, with the part of ``subprocess.Popen``'s interface that tests use; text mode.

    Attributes:
        pid: its process id.
        stdout: what it prints, on either stream.
        returncode: None while it runs; minus the signal's number where one ended it.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        """Start it in the current folder, with these variables instead of this process's."""
        request = {
            "module": module,
            "arguments": arguments,
            "folder": str(Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "start_new_session": start_new_session,
        }
        read_output, write_output = os.pipe()
        self._status, write_status = os.pipe()
        content = json.dumps(request).encode()
        server = _server()
        socket.send_fds(server, [len(content).to_bytes(4, "big")], [write_output, write_status])
        server.sendall(content)
        os.close(write_output)
        os.close(write_status)
        self.stdout: TextIO = os.fdopen(read_output, encoding="utf-8")
        self.returncode: int | None = None
        self.pid = int.from_bytes(os.read(self._status, 4), "big")

    def poll(self, seconds: float | None = 0) -> int | None:
        """Return its exit code if it ends within so many seconds (None: whenever it does), else None."""
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            self.returncode = int.from_bytes(os.read(self._status, 4), "big", signed=True)
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code."""
        if self.poll(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the rest of what it prints, once it has ended."""
        # Read as it comes: a full pipe would stop it.
        printed = self.stdout.read()
        self.wait(timeout)
        return printed, None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Program":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for its end."""
        self.stdout.close()
        self.wait()


@cache
def _server() -> socket.socket:
    """Start the process that has everything imported; it ends with this one."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(connection: socket.socket) -> None:
    """Fork a program for each request; return in the program's process, ready to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, fds, *_ = socket.recv_fds(connection, 4, 2)
        if not head:
            connection.close()
            sys.exit()
        content = b""
        while len(content) < int.from_bytes(head, "big"):
            content += connection.recv(2**20)
        output, status = fds
        # A process between the two waits for the program's end, so that the server can go on.
        if os.fork():
            os.close(output)
            os.close(status)
            continue
        _end_with_parent()
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if program := os.fork():
            os.close(output)
            os.write(status, program.to_bytes(4, "big"))
            _, code = os.waitpid(program, 0)
            os.write(status, os.waitstatus_to_exitcode(code).to_bytes(4, "big", signed=True))
            os._exit(0)
        _end_with_parent()
        os.close(status)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        _become(json.loads(content))
        return


def _end_with_parent() -> None:
    """Have this process killed when the one that forked it ends: tests that are killed leave no program behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _become(request: Mapping[str, object]) -> None:
    """Take the folder, the environment and the arguments of the program that is asked for."""
    if request["start_new_session"]:
        os.setsid()
    os.chdir(str(request["folder"]))
    environment, arguments = request["environment"], request["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, Sequence)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(request["module"]), *arguments]


def _main() -> None:
    sys.path.pop(0)  # this file's folder, which Python puts there; a program is started in another
    warnings.simplefilter("default")
    for name in IMPORTED:
        __import__(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path.insert(0, "")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
