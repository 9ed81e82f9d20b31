"""What holds for all tests."""

import logging
import os
from collections.abc import Iterator

import pytest

LONGEST = ("test_pipeline.py", "test_resume.py", "test_several_ranks.py", "test_repro.py", "test_finetune.py")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes one thread, before torch is imported: more would wait for each other."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, each of which one process runs: at the end the others would wait for it."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Restore what a command sets when it is called in this process."""
    logger = logging.getLogger("headstart")
    level = logger.level
    yield
    logger.setLevel(level)
