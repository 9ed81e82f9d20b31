"""What holds for all tests."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes one thread, before torch is imported: more would wait for each other."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
