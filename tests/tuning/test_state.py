"""A search that several processes share; here each is a folder object of its own, whose locks are of the kernel."""

import time
from pathlib import Path

import pytest

from headstart.training.figures import Monitor
from headstart.tuning.halving import Halving, Job
from headstart.tuning.state import SearchFolder

RULES = Halving([1, 3], Monitor("val_loss", higher_is_better=False))


def test_two_take_different_tries(tmp_path: Path) -> None:
    one, other = (SearchFolder(tmp_path, time.time()) for _ in range(2))
    with one.next_job(RULES, 1e9) as first, other.next_job(RULES, 1e9) as second:
        assert (first, second) == (Job(0, 1), Job(1, 1))
    with other.next_job(RULES, 1e9) as third:
        assert third == Job(0, 3), "it was not trained, and is free again"


def test_the_last_of_several_ends_the_search(tmp_path: Path) -> None:
    one, other = (SearchFolder(tmp_path, time.time()) for _ in range(2))
    one.join()
    other.join()
    assert not one.leave()
    assert other.leave()


def test_the_seconds_of_several_count_once_and_those_between_two_starts_not_at_all(tmp_path: Path) -> None:
    now = time.time()
    first = SearchFolder(tmp_path, now - 100)
    assert first.used() == pytest.approx(100, abs=5)
    joined = SearchFolder(tmp_path, now - 10)
    assert joined.used() == pytest.approx(110, abs=5)
    assert first.used() == pytest.approx(110, abs=5)
