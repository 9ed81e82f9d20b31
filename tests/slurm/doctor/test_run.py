"""The command, and its tasks' rendezvous by processes of this machine."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from headstart.slurm.doctor import network_check
from helpers.images import ROOT, params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    YAML().dump(params({"run.cache": "cache"}).model_dump(), tmp_path / "params.yaml")
    return tmp_path


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headstart.slurm.doctor.run", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_good_script_on_a_good_machine(project: Path) -> None:
    changed = params({"run.cache": "cache", "run.accelerator": "auto"})
    YAML().dump(changed.model_dump(), project / "params.yaml")
    answer = doctor(str(ROOT / "slurm" / "finetune.sbatch"))
    assert (answer.returncode, answer.stderr) == (0, "")
    first, last = answer.stdout.splitlines()
    assert first.startswith("info: a state of ")
    assert last == "doctor: nothing wrong was found"


@pytest.mark.usefixtures("project")
def test_json_is_a_list_and_an_error_is_exit_code_1() -> None:
    Path("job.sbatch").write_text("#!/bin/sh\n#SBATCH --ntasks=4\n")
    Path("params.yaml").write_text("run: 1\n")
    answer = doctor("job.sbatch", "--json")
    findings = json.loads(answer.stdout)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert all(set(finding) == {"severity", "name", "message"} for finding in findings)
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["ntasks-per-node-missing"]["message"].startswith("line 2: #SBATCH --ntasks=4: ")
    assert by_name["time-missing"]["severity"] == "warning"
    assert by_name["params-invalid"]["severity"] == "error"


@pytest.mark.usefixtures("project")
def test_a_script_that_is_not_there_is_an_error() -> None:
    answer = doctor("gone.sbatch")
    assert answer.returncode == 1
    assert answer.stdout.startswith("error: gone.sbatch can't be read")


def test_all_ranks_meet_or_the_missing_one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("", 0))
        port = one.getsockname()[1]
    monkeypatch.setattr(network_check, "RENDEZVOUS_S", 5)
    with ThreadPoolExecutor() as ranks:
        assert list(ranks.map(lambda rank: network_check.meet(rank, 3, "127.0.0.1", port), range(3))) == [[], [], []]
        monkeypatch.setattr(network_check, "RENDEZVOUS_S", 1)
        assert list(ranks.map(lambda rank: network_check.meet(rank, 4, "127.0.0.1", port), [0, 1, 3])) == [
            [2],
            [1],
            [3],
        ]
