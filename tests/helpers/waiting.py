"""Makes worker processes take part in tests that are too small to wait for them."""

from threading import Event
from typing import Any

import pytest

from headstart.data import parallel


def wait_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the workers after the first task, which this process does itself."""
    start = parallel.server_started

    def start_and_wait(*arguments: Any) -> Event:
        ready = start(*arguments)
        ready.wait()
        return ready

    monkeypatch.setattr(parallel, "server_started", start_and_wait)
