"""What holds for all tests."""

import logging
import os
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes one thread, before torch is imported: more would wait for each other."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that one process runs together, the longest: at the end the others would wait for it."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Restore what a command sets when it is called in this process."""
    logger = logging.getLogger("headstart")
    level = logger.level
    yield
    logger.setLevel(level)
