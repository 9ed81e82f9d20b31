import os
import socket
import threading
import time
from pathlib import Path

import pytest

from headstart.core import lock
from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.lock import locked


@pytest.mark.parametrize(("job", "of_job"), [(None, ""), ("12", " of Slurm job 12")])
def test_a_second_holder_is_refused_and_told_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None, of_job: str
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with locked(tmp_path / "it", "it is busy"):
        monkeypatch.setenv("SLURM_JOB_ID", "13")
        with pytest.raises(UserError) as caught, locked(tmp_path / "it", "it is busy"):
            pytest.fail("held twice")
        who = f"{socket.gethostname()} as process {os.getpid()}{of_job}"
        assert str(caught.value) == f"it is busy on {who}: wait for it, or stop it first"
    with locked(tmp_path / "it", "it is busy"):
        pass


def test_a_requeued_job_waits_for_what_its_own_earlier_start_left_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(lock, "LEASE_S", 5)
    taken, seconds = threading.Event(), 0.5

    def hold() -> None:
        with locked(tmp_path / "it", "it is busy"):
            taken.set()
            time.sleep(seconds)

    start = time.monotonic()
    earlier = threading.Thread(target=hold)
    earlier.start()
    taken.wait()
    with locked(tmp_path / "it", "it is busy"):
        assert time.monotonic() - start >= seconds
    earlier.join()


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "it.holder.json", {"host": "gone", "pid": 1, "job": "12"})
    with locked(tmp_path / "it", "it is busy"):
        pass
    assert not (tmp_path / "it.holder.json").exists()
