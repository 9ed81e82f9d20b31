"""Tasks that several ranks share: each is done once, whoever is slow, and in one process nothing is written."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.core.paths import STATE
from headstart.distributed.claims import _new_folder, claim_tasks
from headstart.distributed.process_group import ProcessGroup


class Rank(ProcessGroup):
    """One of several ranks in this process, which all know the folder that the test made."""

    folder: Path

    def broadcast_from_rank_zero(self, _: Any) -> Any:
        return self.folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rank, "folder", _new_folder(), raising=False)
    return Rank.folder


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("count", "world"), [(1, 2), (7, 3), (100, 4), (5, 16), (0, 2)])
def test_every_task_is_one_ranks(count: int, world: int) -> None:
    generator = np.random.default_rng(count)
    working = [claim_tasks(count, Rank(rank, world)) for rank in range(world)]
    done: list[int] = []
    while working:
        rank = working[generator.integers(len(working))]
        if (task := next(rank, None)) is None:
            working.remove(rank)
        else:
            done.append(task)
    assert Counter(done) == Counter(range(count))


@pytest.mark.usefixtures("folder")
def test_a_rank_begins_with_its_own_part_and_a_fast_one_takes_what_is_left() -> None:
    slow, fast = (claim_tasks(10, Rank(rank, 2)) for rank in range(2))
    assert [next(slow), *(next(fast) for _ in range(5))] == [0, 5, 6, 7, 8, 9]
    assert {next(fast), next(fast), next(fast)} < {1, 2, 3, 4}
    assert len([*slow, *fast]) == 1


def test_claims_of_an_earlier_set_do_not_count(folder: Path) -> None:
    assert sorted(claim_tasks(3, Rank(0, 2))) == [0, 1, 2]
    Rank.folder = _new_folder()
    assert not folder.exists()
    assert sorted(claim_tasks(3, Rank(1, 2))) == [0, 1, 2]


def test_a_file_server_that_lists_late_ends_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(claim_tasks(4, Rank(0, 2))) == [0, 1, 2, 3]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))
    assert list(claim_tasks(4, Rank(1, 2))) == []
    assert folder.exists()


def test_a_single_process_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(claim_tasks(4, ProcessGroup())) == [0, 1, 2, 3]
    assert not STATE.exists()
