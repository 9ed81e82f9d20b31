"""The files of a search, in the project's folder: what was tried, and how much of the budget is used.

Any number of processes search together where they share this folder: each takes its next job under one lock and holds
another while it trains. Both are the kernel's, so that a process that was killed leaves nothing behind but its files.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from headstart.core.io import read_json, write_json
from headstart.tuning.halving import Halving, Job, Try


class SearchFolder:
    """A search's folder. ``began`` is when this process started, in seconds since 1970."""

    def __init__(self, path: Path, began: float) -> None:
        self.path, self._began = path, began
        path.mkdir(parents=True, exist_ok=True)
        self._used_before = self._state().get("used", 0.0)
        self._worker = self.lock(f"worker-{secrets.token_hex(8)}")

    def _state(self) -> dict[str, Any]:
        path = self.path / "search.json"
        state: dict[str, Any] = read_json(path) if path.exists() else {}
        return state

    @property
    def schedule(self) -> int | None:
        """Epochs of a whole training, None until the first process has measured how many fit."""
        return self._state().get("epochs")

    def set_schedule(self, epochs: int) -> None:
        """Keep the number of epochs for every process, and for a search that is continued."""
        write_json(self.path / "search.json", {**self._state(), "epochs": epochs})

    def used(self) -> float:
        """Return and keep the seconds of the budget that are used; those that several processes share count once."""
        with self.lock("search"):
            state = self._state()
            used: float = max(state.get("used", 0.0), self._used_before + time.time() - self._began)
            write_json(self.path / "search.json", {**state, "used": round(used, 1)})
        return used

    def lock(self, name: str, timeout: float = -1) -> FileLock:
        """Return a lock between the processes of this search, to wait for as long as it takes, or ``timeout`` s."""
        return FileLock(self.path / f"{name}.lock", timeout=timeout)

    def tries(self) -> list[Try]:
        """Read all tries."""
        return [Try(**read_json(path)) for path in sorted(self.path.glob("*/try.json"))]

    def save(self, each: Try) -> None:
        """Write a try."""
        write_json(self.of(each.number) / "try.json", asdict(each))

    def of(self, number: int) -> Path:
        """Return the folder of a try."""
        return self.path / f"{number:04}"

    def scores(self, each: Try) -> NDArray[np.float32]:
        """Read what an ``Observer`` wrote after each epoch of a try, the start first: float32 (1 + epochs, …)."""
        return np.stack([np.load(self.of(each.number) / f"{epoch}.npy") for epoch in range(each.epochs + 1)])

    @contextmanager
    def next_job(self, halving: Halving, seconds_left: float) -> Iterator[Job | None]:
        """Choose a job and hold its try's lock."""
        with ExitStack() as held:
            with self.lock("search"):
                tries = self.tries()
                busy = {each.number for each in tries if self._is_held(f"try-{each.number}")}
                job = halving.next_job(tries, busy, seconds_left)
                if job is not None:
                    held.enter_context(self.lock(f"try-{job.number}"))
                    if job.number == len(tries):
                        self.save(Try(job.number, {}, job.epochs))
            yield job

    def join(self) -> None:
        """Be one of the processes that search, until this one leaves or ends."""
        self._worker.acquire()

    def leave(self) -> bool:
        """Search no more; return whether nobody else does, so that this process is to end the search."""
        with self.lock("search"):
            self._worker.release()
            Path(self._worker.lock_file).unlink(missing_ok=True)
            return not any(self._is_held(path.stem) for path in self.path.glob("worker-*.lock"))

    def _is_held(self, name: str) -> bool:
        with suppress(Timeout), self.lock(name, timeout=0):
            return False
        return True
