"""Runs a stage again and again, each time in a process that can be killed: python stage_server.py STAGE.

The processes are forked from one that has imported the stage, because importing torch takes longer than a small stage.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from headstart.stages.program import main


class StageServer:
    """Starts the processes, one at a time, each in a session of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(self, folder: Path, environment: Mapping[str, str], output: Path) -> int:
        """Start the stage in a folder, with its output to a file; return the process id."""
        assert self._process.stdin is not None
        request = {"folder": str(folder), "environment": dict(environment), "output": str(output)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read_number()

    def wait(self) -> int:
        """Wait for the process that was started last; return its exit code, negative for a signal."""
        return self._read_number()

    def _read_number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def stage_server(stage: str) -> Iterator[StageServer]:
    """Yield a server for a stage."""
    command = [sys.executable, "-m", "helpers.stage_server", stage]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as server:
        yield StageServer(server)
        assert server.stdin is not None
        server.stdin.close()


def _serve(name: str) -> None:
    stage = importlib.import_module(f"headstart.stages.{name}")
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _become(json.loads(line), name)
            main(stage.run, stage.PARAMS)
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(request: dict[str, object], name: str) -> None:
    """Set up what a program started anew would have: session, folder, environment, standard streams, arguments."""
    os.setsid()
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    streams = (os.devnull, os.O_RDONLY), *[(str(request["output"]), os.O_WRONLY | os.O_CREAT)] * 2
    for number, (path, flags) in enumerate(streams):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = [name]


if __name__ == "__main__":
    _serve(sys.argv[1])
