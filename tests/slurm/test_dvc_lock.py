import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.core.paths import DVC_RWLOCK
from headstart.slurm.dvc_lock import remove_stale_rwlock


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DVC_RWLOCK.parent.mkdir(parents=True)


def named(*pids: int) -> str:
    """What DVC writes: who writes the first file, and who reads it."""
    infos = [{"pid": pid, "cmd": "dvc repro"} for pid in pids]
    return json.dumps({"write": {"data": infos[0]}, "read": {"data": infos[1:]}})


def test_a_process_of_another_node_has_no_meaning_here() -> None:
    """This process has that id, but is not DVC; DVC itself would wait for it."""
    DVC_RWLOCK.write_text(named(os.getpid(), os.getpid()))
    assert remove_stale_rwlock()
    assert not DVC_RWLOCK.exists()
    assert not remove_stale_rwlock()


@pytest.mark.parametrize("content", ["", '{"write": {"data": {"pid": 1'])
def test_a_truncated_file_is_removed(content: str) -> None:
    DVC_RWLOCK.write_text(content)
    assert remove_stale_rwlock()


def test_a_free_lock_stays() -> None:
    DVC_RWLOCK.write_text('{"write": {}, "read": {}}')
    assert not remove_stale_rwlock()


@pytest.mark.parametrize("place", ["write", "read"])
def test_a_dvc_that_lives_here_keeps_it(place: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE) as dvc:
        DVC_RWLOCK.write_text(named(dvc.pid, os.getpid()) if place == "write" else named(os.getpid(), dvc.pid))
        assert not remove_stale_rwlock()
        dvc.communicate(b"\n")
    assert remove_stale_rwlock()
