"""How batch scripts are read; broken ones and the one finding of each of them; the project's own have none."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.slurm.doctor.batch_checks import (
    SBATCH_OPTIONS,
    Resources,
    Signal,
    check_params,
    check_script,
    check_tracking,
    count_gpus,
    count_gres_gpus,
    parse_nodes,
    parse_seconds,
    parse_signal,
    read_batch_script,
    resources_of,
)

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


def test_the_message_says_what_a_signal_to_the_tasks_alone_does() -> None:
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


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("2:00:01", 7201),
        ("1-2", 93_600),
        ("1-2:30", 95_400),
        ("1-0:0:5", 86_405),
        ("0", math.inf),
        ("UNLIMITED", math.inf),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, expected: float) -> None:
    assert parse_seconds(time) == expected


@pytest.mark.parametrize("time", ["12h", "1:2:3:4", "", "1-2:3:4:5"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_seconds(time)


def test_signals_nodes_and_gpus_are_read() -> None:
    assert parse_signal("B:USR1@180") == Signal(batch=True, name="USR1", seconds=180)
    assert parse_signal("SIGUSR1") == parse_signal("10") == Signal(batch=False, name="USR1", seconds=60)
    assert parse_signal("RB:12@5") == Signal(batch=True, name="USR2", seconds=5)
    assert [parse_nodes(text) for text in ("3", "2-4", "8,4")] == [3, 2, 4]
    assert [count_gpus(text) for text in ("4", "a100:2", "a100:2,v100:1")] == [4, 2, 3]
    assert [count_gres_gpus(text) for text in ("gpu", "gpu:a100", "gpu:a100:4", "shard:3,gpu:2", "shard:3")] == [
        1,
        1,
        4,
        2,
        0,
    ]


def test_options_are_found_as_sbatch_finds_them() -> None:
    """Short names, values after a space, several in a line, comments, prefixes of names; the last one wins."""
    script = read_batch_script(
        "#!/bin/sh\n"
        "#SBATCH -N 2 -t1:00:00 --job-name 'two words' # --requeue\n"
        "\n# a comment\n"
        "##SBATCH --ntasks=9\n# SBATCH --ntasks=8\n"
        "#SBATCH --nodes=3 --exclusive --open=append\n"
        "echo --gpus=1\n"
    )
    assert script.findings == []
    assert script.options == {
        "nodes": "3",
        "time": "1:00:00",
        "job-name": "two words",
        "exclusive": "",
        "open-mode": "append",
    }
    assert script.lines["time"].startswith("line 2: #SBATCH -N 2")
    assert script.lines["nodes"].startswith("line 7: ")


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("#SBATCH --cpu-per-task=4", "option-unknown", "line 2: .*did you mean --cpus-per-task?"),
        ("#SBATCH --ntask=4", "option-invalid", "ambiguous"),
        ("#SBATCH --ntasks=four", "option-invalid", "'four' is no value of --ntasks"),
        ("#SBATCH --time=12h", "option-invalid", "'12h'"),
        ("#SBATCH --job-name='open", "option-invalid", "No closing quotation"),
        ("#SBTACH --nodes=2", "directive-misspelt", "write #SBATCH"),
        ("  #SBATCH --nodes=2", "directive-misspelt", "write #SBATCH"),
        ("true\n#SBATCH --nodes=2", "directive-ignored", "line 3: .*since line 2 is a command"),
    ],
)
def test_a_line_that_does_not_do_what_it_says_is_named(line: str, name: str, said: str) -> None:
    script = read_batch_script(f"#!/bin/sh\n{line}\n")
    (finding,) = script.findings
    assert (finding.severity, finding.name) == ("error", name)
    assert re.search(said, finding.message)
    # Parsed as it was meant, so that one mistake is one finding.
    assert script.options == ({"nodes": "2"} if name.startswith("directive") else {})


def test_a_file_without_an_interpreter_is_no_script() -> None:
    assert [finding.name for finding in read_batch_script("#SBATCH --nodes=2\n").findings] == ["no-interpreter"]
    assert [finding.name for finding in read_batch_script("").findings] == ["no-interpreter"]


def test_each_option_is_listed_once() -> None:
    names = [option.rstrip("=?").rpartition("/")[2] for option in SBATCH_OPTIONS.split()]
    assert len(names) == len(set(names))
