"""Broken batch scripts and the one finding that each of them has; the project's own have none."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.slurm.doctor.batch_checks import Resources, check_params, check_script, check_tracking, resources_of
from headstart.slurm.doctor.batch_script import read_batch_script

ROOT = Path(__file__).parents[3]
GOOD = """#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
sh slurm/launch.sh repro
"""


def params(**run: Any) -> Params:
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["finetune"]["batch_size"] = 64
    content["run"] |= run
    return parse_params(content)


def found(text: str, given: Params, **cluster: str) -> list[tuple[str, str]]:
    script = read_batch_script(text)
    return [finding[:2] for finding in (*check_script(script, cluster), *check_params(script, given))]


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_the_projects_own_scripts_have_no_findings(script: Path) -> None:
    assert found(script.read_text(encoding="utf-8"), params()) == []


@pytest.mark.parametrize(
    ("line", "instead", "severity", "name"),
    [
        ("--ntasks-per-node=4", "--ntasks=8", "error", "ntasks-per-node-missing"),
        ("#SBATCH --ntasks-per-node=4\n", "", "error", "ntasks-per-node-missing"),
        ("--nodes=2", "--nodes=2 --ntasks=7", "error", "ntasks-uneven"),
        ("--nodes=2", "--nodes=2 --ntasks=6", "error", "ntasks-uneven"),
        ("--gpus-per-node=4", "--gres=gpu:a100:2", "error", "gpus-too-few"),
        ("--gpus-per-node=4", "--gpus=16", "error", "gpus-idle"),
        ("--gpus-per-node=4", "--gpus-per-task=2", "error", "gpus-idle"),
        ("--nodes=2", "--nodes=20", "error", "batch-too-small"),
        ("--cpus-per-task", "--cpu-per-task", "error", "option-unknown"),
        ("--time=12:00:00", "--time=12h", "error", "option-invalid"),
        ("--time=12:00:00", "--time=3", "error", "time-too-short"),
        ("#SBATCH --output", "true\n#SBATCH --output", "error", "directive-ignored"),
        ("#SBATCH --gpus", "#SBACTH --gpus", "error", "directive-misspelt"),
        ("#!/bin/sh\n", "", "error", "no-interpreter"),
        ("=slurm-%j.out", "=logs/%j.out", "error", "output-folder-missing"),
        ("B:USR1@180", "B:TERM@180", "error", "signal-not-usr1"),
        ("B:USR1@180", "USR1@180", "warning", "signal-not-batch"),
        ("#SBATCH --signal=B:USR1@180\n", "", "warning", "signal-missing"),
        ("#SBATCH --time=12:00:00\n", "", "warning", "time-missing"),
        ("--requeue", "--no-requeue", "warning", "requeue-off"),
        ("#SBATCH --requeue\n", "", "warning", "requeue-missing"),
        ("#SBATCH --open-mode=append\n", "", "warning", "open-mode-missing"),
        ("#SBATCH --cpus-per-task=8\n", "", "warning", "cpus-per-task-missing"),
        ("--cpus-per-task=8", "--cpus-per-task=1", "warning", "cpus-per-task-missing"),
    ],
)
def test_a_broken_script_is_named(line: str, instead: str, severity: str, name: str) -> None:
    assert found(GOOD, params()) == []
    assert line in GOOD
    assert found(GOOD.replace(line, instead), params()) == [(severity, name)]


def test_it_is_said_what_a_signal_to_the_tasks_alone_does() -> None:
    (finding,) = check_script(read_batch_script(GOOD.replace("B:USR1", "USR1")), {})
    assert "only a job in finetune's training is then queued again: write --signal=B:USR1@180" in finding.message


@pytest.mark.parametrize(
    ("run", "name"),
    [({"devices": 2}, "devices-conflict"), ({"accelerator": "cpu"}, "gpus-idle"), ({"devices": 4}, None)],
)
def test_params_and_script_must_agree(run: dict[str, Any], name: str | None) -> None:
    assert found(GOOD, params(**run)) == ([("error", name)] if name else [])


def test_what_the_cluster_does_anyway_needs_no_line() -> None:
    text = GOOD.replace("#SBATCH --requeue\n", "").replace("#SBATCH --open-mode=append\n", "")
    assert found(text, params(), JobRequeue="1", JobFileAppend="1") == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Resources(1, 1, None)),
        ({"nodes": "2"}, Resources(2, 2, None)),
        ({"ntasks": "4", "ntasks-per-node": "2"}, Resources(2, 4, None)),
        ({"nodes": "2", "ntasks-per-node": "2", "gpus-per-task": "1"}, Resources(2, 4, 2)),
        ({"nodes": "1", "ntasks": "4", "gpus": "4"}, Resources(1, 4, 4)),
    ],
)
def test_resources_are_counted_as_slurm_counts(options: dict[str, str], expected: Resources) -> None:
    assert resources_of(options) == expected


def test_an_online_run_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine elsewhere.example login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert list(check_tracking(params(tracking="offline"))) == []
    assert [finding.name for finding in check_tracking(params(tracking="online"))] == ["wandb-key-missing"]
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    assert list(check_tracking(params(tracking="online"))) == []
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert list(check_tracking(params(tracking="online"))) == []
