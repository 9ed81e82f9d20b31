"""Makes worker processes take part in tests that would end before they have started."""

from threading import Event
from typing import Any

import pytest

from headstart.data import parallel


def wait_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``map_in_order`` run only the first task in this process."""
    start = parallel.start_server

    def start_and_wait(*arguments: Any) -> Event:
        ready = start(*arguments)
        ready.wait()
        return ready

    monkeypatch.setattr(parallel, "start_server", start_and_wait)
