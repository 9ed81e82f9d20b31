import os
import socket
from pathlib import Path

import pytest

from headstart.core.errors import UserError
from headstart.training import checkpoint
from headstart.training.checkpoint import RunDir, open_run_dir, run_key


def test_a_second_start_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with open_run_dir(tmp_path, "abc", resume=True) as folder:
        folder.last.write_text("state")
        for resume in (True, False):
            with (
                pytest.raises(UserError, match="already runs") as caught,
                open_run_dir(tmp_path, "abc", resume=resume),
            ):
                pytest.fail("opened twice")
            assert socket.gethostname() in str(caught.value)
            assert f"process {os.getpid()}:" in str(caught.value)
        assert folder.last.read_text() == "state"
        with open_run_dir(tmp_path, "other", resume=True) as other:
            assert other.path != folder.path
    with open_run_dir(tmp_path, "abc", resume=True) as folder:
        assert folder.last.read_text() == "state"


def test_the_lock_is_given_back_after_an_exception(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_run_dir(tmp_path, "abc", resume=True) as folder:
            folder.last.write_text("state")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_run_dir(tmp_path, "abc", resume=True) as folder:
        assert folder.last.read_text() == "state"


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "abc.holder.json").write_text('{"host": "gone", "pid": 1}')
    with open_run_dir(tmp_path, "abc", resume=True) as folder:
        assert folder.path.is_dir()
    assert not (tmp_path / "runs" / "abc.holder.json").exists()


def test_not_to_resume_is_to_begin_with_an_empty_folder(tmp_path: Path) -> None:
    with open_run_dir(tmp_path, "abc", resume=True) as folder:
        folder.last.write_text("state")
    with open_run_dir(tmp_path, "abc", resume=False) as folder:
        assert list(folder.path.iterdir()) == []


def test_all_that_a_run_keeps_is_in_its_folder() -> None:
    folder = RunDir(Path("here"))
    names = {folder.last, folder.best, folder.start, folder.tracking}
    assert len(names) == 4
    assert {name.parent for name in names} == {folder.path}


def test_a_run_is_named_by_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"ab")
    other.write_bytes(b"c")
    content = {"backbone": {"name": "x", "seed": 0}, "finetune": {"l2": {"head": 1e-3}}}
    key = run_key(content, [one, other])
    assert run_key(dict(reversed(content.items())), [one, other]) == key
    other_params = {**content, "finetune": {"l2": {"head": 1e-2}}}
    keys = [key, run_key(other_params, [one, other]), run_key(content, [other, one]), run_key(content, [one])]
    one.write_bytes(b"a")
    other.write_bytes(b"bc")  # the same bytes in a row
    keys.append(run_key(content, [one, other]))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FORMAT", checkpoint.CHECKPOINT_FORMAT + 1)
    keys.append(run_key(content, [one, other]))
    monkeypatch.setattr(checkpoint, "version", lambda _: "another")
    keys.append(run_key(content, [one, other]))
    assert len(set(keys)) == len(keys)
