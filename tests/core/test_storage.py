"""Disks that are full, read-only or another's, as libraries report them."""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file

from headstart.core.command import Command
from headstart.core.errors import UserError
from headstart.core.io import atomic_write, temporary_folder, write_json
from headstart.core.storage import ADVICE, storage_errors, storage_message
from headstart.data.shards import write_array
from helpers.images import ROOT
from helpers.small_disk import largest_file

LIMIT = 4096
ZEROS = np.zeros(2**21, np.uint8)


def with_sqlite(path: Path) -> None:
    database = sqlite3.connect(path)
    try:
        database.execute("CREATE TABLE t (x BLOB)")
        database.execute("INSERT INTO t VALUES (zeroblob(2000000))")
        database.commit()
    finally:
        database.close()


def with_torch(path: Path) -> None:
    torch.save(torch.from_numpy(ZEROS), path)


def with_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, ZEROS)


def with_onnx(path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(ZEROS, "zeros")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "none", [], [], [tensor])), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "json": lambda path: write_json(path, ["zeros"] * 10**4),
    "numpy": with_numpy,
    "rows": lambda path: write_array(path, iter(ZEROS.reshape(2, -1)), ZEROS.dtype, (2, 2**20)),
    "safetensors": lambda path: save_file({"zeros": ZEROS}, path),
    "sqlite": with_sqlite,
    "torch": with_torch,
    "onnx": with_onnx,
}


@pytest.mark.parametrize("library", WRITERS)
def test_whichever_library_meets_it_the_error_has_a_number_and_a_path(library: str, tmp_path: Path) -> None:
    final = tmp_path / "it"
    with largest_file(LIMIT), pytest.raises(OSError) as caught, atomic_write(final) as partial:  # noqa: PT011
        WRITERS[library](partial)
    assert caught.value.errno == errno.EFBIG
    message = storage_message(caught.value)
    assert message is not None
    assert message.startswith(f"{final}: file too large: raise `ulimit -f`")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    for error in (ValueError("no"), UserError("no"), FileNotFoundError(errno.ENOENT, "no", "other"), OSError("no")):
        with pytest.raises(type(error)) as caught, storage_errors(tmp_path / "it"):
            raise error
        assert caught.value is error
    assert storage_message(FileNotFoundError(errno.ENOENT, "no", "other")) is None
    with pytest.raises(ValueError, match="no"), storage_errors(tmp_path / "gone" / "it"):
        raise ValueError("no")


def test_a_read_only_disk_is_found_by_trying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(OSError, match="Read-only") as caught, storage_errors(tmp_path / "it"):
        raise sqlite3.OperationalError("unable to open database file")
    assert caught.value.filename == str(tmp_path / "it")


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_a_command_ends_with_one_line(number: int, tmp_path: Path) -> None:
    @click.command(cls=Command)
    def writing() -> None:
        with atomic_write(tmp_path / "data" / "it"):
            raise OSError(number, os.strerror(number))

    answer = CliRunner().invoke(writing, catch_exceptions=False)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"error: {tmp_path}/data/it: {os.strerror(number).lower()}")
    assert answer.stderr.endswith(f": {ADVICE[number]}\n")
    assert answer.stderr.count("\n") == 1


def test_the_line_has_the_final_name_and_the_free_space(tmp_path: Path) -> None:
    def full(name: str) -> str | None:
        return storage_message(OSError(errno.ENOSPC, "", str(tmp_path / name)))

    for name in (".it.partial", ".it.partial/part.npy", "it/.part.npy.partial"):
        assert f"{full(name)}".startswith(
            f"{tmp_path / name.replace('.it.partial', 'it').replace('.part', 'part')}"[:-8]
        )
    assert " MB free on its disk): free some space there, then start again" in f"{full('it')}"


def test_a_full_stdout_is_one_line(tmp_path: Path) -> None:
    """The interpreter writes what is left when it ends, so this needs a process."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "headstart", "params"]
        answer = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert answer.stderr.startswith("error: the output: no space left on device: free some space there")


SMALL_DISK = """
mount -t tmpfs -o size=64k tmpfs . && cd "$PWD" && exec "$0" -c "
from pathlib import Path
import numpy as np
from headstart.data.shards import write_array
try:
    write_array(Path('rows.npy'), iter(np.zeros((200, 1024))), np.dtype('f8'), (200, 1024))
except OSError as error:
    print(error.errno)
"
"""


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to mount")
def test_rows_that_do_not_fit_are_an_error_and_no_signal(tmp_path: Path) -> None:
    """A memory map that grows into a full disk is SIGBUS; the mount needs a process with a namespace of its own."""
    command = ["unshare", "-m", "sh", "-c", SMALL_DISK, sys.executable]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "mount" in answer.stderr or "unshare" in answer.stderr:
        pytest.skip(answer.stderr)
    assert (answer.returncode, answer.stdout) == (0, f"{errno.ENOSPC}\n"), answer.stderr


def test_a_temporary_folder_is_new_and_gone_afterwards_whatever_happens(tmp_path: Path) -> None:
    left = tmp_path / "state" / "work"
    left.mkdir(parents=True)
    (left / "of-a-killed-run").touch()
    for error in (RuntimeError, None):
        with contextlib.suppress(RuntimeError), temporary_folder(left) as folder:
            assert list(folder.iterdir()) == []
            (folder / "large.npy").touch()
            if error:
                raise error
    assert list(left.parent.iterdir()) == []
