"""The command; that it runs as a program of its own is in test_doctor_in_jobs.py."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from ruamel.yaml import YAML

from helpers.command import headstart
from helpers.images import ROOT, params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    YAML().dump(params({"run.cache": "cache"}).model_dump(), tmp_path / "params.yaml")
    return tmp_path


def doctor(*arguments: str) -> Result:
    return headstart("doctor", *arguments)


def test_a_good_script_on_a_good_machine(project: Path) -> None:
    changed = params({"run.cache": "cache", "run.accelerator": "auto", "export.formats": ["pt2"]})
    YAML().dump(changed.model_dump(), project / "params.yaml")
    answer = doctor(str(ROOT / "slurm" / "finetune.sbatch"))
    assert (answer.exit_code, answer.stderr) == (0, "")
    first, last = answer.stdout.splitlines()
    assert first.startswith("info: a checkpoint of ")
    assert last == "doctor: nothing wrong was found"


@pytest.mark.usefixtures("project")
def test_json_is_a_list_and_an_error_is_exit_code_1() -> None:
    Path("job.sbatch").write_text("#!/bin/sh\n#SBATCH --ntasks=4\n")
    Path("params.yaml").write_text("run: 1\n")
    answer = doctor("job.sbatch", "--json")
    findings = json.loads(answer.stdout)
    assert (answer.exit_code, answer.stderr) == (1, "")
    assert all(set(finding) == {"severity", "name", "message"} for finding in findings)
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["ntasks-per-node-missing"]["message"].startswith("line 2: #SBATCH --ntasks=4: ")
    assert by_name["time-missing"]["severity"] == "warning"
    assert by_name["params-invalid"]["severity"] == "error"


@pytest.mark.usefixtures("project")
def test_a_script_that_is_not_there_is_an_error() -> None:
    answer = doctor("gone.sbatch")
    assert answer.exit_code == 1
    assert answer.stdout.startswith("error: gone.sbatch can't be read")


@pytest.mark.usefixtures("project")
def test_windows_line_ends_are_named() -> None:
    Path("slurm").mkdir()
    for name in ("slurm/launch.sh", "job.sbatch"):
        Path(name).write_bytes(b"#!/bin/sh\r\nset -eu\r\n")
    Path("params.yaml").write_text("run: 1\n")
    findings = json.loads(doctor("job.sbatch", "--json").stdout)
    named = [each["message"] for each in findings if each["name"] == "windows-line-ends"]
    assert [message.partition(":")[0] for message in named] == ["slurm/launch.sh", "job.sbatch"]
    assert named[0].endswith("which a shell can't read: sed -i 's/\\r$//' slurm/launch.sh")


def test_a_backbone_that_the_stages_can_not_use_is_an_error(project: Path) -> None:
    for changes, words in (
        ({"backbone.args": {"in_chans": 1}}, "error: backbone.args.in_chans: 1: "),
        ({"backbone.name": "test_vit", "backbone.image_size": 100}, "error: backbone.image_size: 100: test_vit fails"),
    ):
        YAML().dump(params({"run.cache": "cache", **changes}).model_dump(), project / "params.yaml")
        answer = doctor()
        assert answer.exit_code == 1
        assert answer.stdout.startswith(words)
        assert answer.stdout.endswith("[backbone-unavailable]\n")


def test_weights_that_are_not_here_yet_are_a_warning(project: Path) -> None:
    changes = {"run.cache": "cache", "backbone.name": "test_resnet", "backbone.pretrained": True}
    YAML().dump(params(changes).model_dump(), project / "params.yaml")
    first = doctor().stdout.splitlines()[0]
    assert first.startswith("warning: the weights of test_resnet are not here yet")
    assert first.endswith("[weights-not-here]")
