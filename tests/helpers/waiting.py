"""Have worker processes do their part in tests too small to wait for them."""

from threading import Event
from typing import Any

import pytest

from headstart.data import parallel


def wait_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the first task be done in this process."""
    start = parallel.start_server

    def start_and_wait(*arguments: Any) -> Event:
        ready = start(*arguments)
        ready.wait()
        return ready

    monkeypatch.setattr(parallel, "start_server", start_and_wait)
