"""What slurm/launch.sh starts, within Slurm and without."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from helpers.images import ROOT
from helpers.slurm_cluster import SlurmCluster

# Replaces the environment's Python, and records what a task was given. (CPUs per task are enforced by Slurm's task
# plugins, of which this cluster has none.)
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m headstart" ] || exit 1
if [ -n "${SLURM_STEP_ID:-}" ]; then
  what="$SLURM_STEP_NUM_TASKS tasks, $SLURM_STEP_TASKS_PER_NODE (${SLURM_NTASKS_PER_NODE:-?} a node)"
  what="$what, cores ${SRUN_CPUS_PER_TASK:-?}, gpus ${CUDA_VISIBLE_DEVICES:-?}"
fi
echo "$3: ${what:-alone}" >> tasks
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    return tmp_path


def tasks(project: Path) -> dict[str, int]:
    return Counter((project / "tasks").read_text().splitlines())


def active(project: Path, name: str = ".venv") -> dict[str, str]:
    return {"VIRTUAL_ENV": str(project / name)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "-N2 --ntasks-per-node=2 -c3 --gpus-per-node=2",
            {"4 tasks, 2(x2) (2 a node), cores 3, gpus 0,1": 4},
        ),
        (
            "-N2 --ntasks-per-node=2 -c1 --gpus-per-task=1",
            {f"4 tasks, 2(x2) (2 a node), cores 1, gpus {gpu}": 2 for gpu in range(2)},
        ),
        ("-N2 -n4 -c4", {"4 tasks, 2(x2) (2 a node), cores 4, gpus ?": 4}),
        ("-N2 -n3", {"3 tasks, 2,1 (? a node), cores ?, gpus ?": 3}),
        ("-N2", {"2 tasks, 1(x2) (1 a node), cores ?, gpus ?": 2}),
        ("-n1", {"1 tasks, 1 (1 a node), cores ?, gpus ?": 1}),
    ],
)
def test_a_stage_has_the_tasks_that_the_job_asked_for(
    cluster: SlurmCluster, project: Path, options: str, expected: dict[str, int]
) -> None:
    stages = "sh slurm/launch.sh finetune && sh slurm/launch.sh export"
    job = cluster.submit(*options.split(), f"--wrap={stages}", cwd=project, environment=active(project))
    assert cluster.wait_for(job)["JobState"] == "COMPLETED", (project / f"slurm-{job}.out").read_text()
    assert tasks(project) == {f"finetune: {task}": count for task, count in expected.items()} | {"export: alone": 1}


def test_within_a_step_no_other_is_started(cluster: SlurmCluster, project: Path) -> None:
    """As in the shell of `srun --pty`."""
    cluster.run("srun", "-n2", "sh", "slurm/launch.sh", "finetune", cwd=project, environment=active(project))
    assert tasks(project) == {"finetune: 2 tasks, 2 (? a node), cores ?, gpus ?": 2}


def test_a_task_that_fails_ends_the_others(cluster: SlurmCluster, project: Path) -> None:
    python = project / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\n[ $SLURM_PROCID = 1 ] && exit 3\nsleep 60\n")
    job = cluster.submit("-n2", "--wrap=sh slurm/launch.sh finetune", cwd=project, environment=active(project))
    assert cluster.wait_for(job, seconds=20)["JobState"] == "FAILED"


def test_without_slurm_a_stage_is_one_process_of_the_environment_that_is_active(project: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "VIRTUAL_ENV"))}
    command = ["sh", "slurm/launch.sh", "finetune"]
    subprocess.run(command, cwd=project, env=kept, check=True)
    assert tasks(project) == {"finetune: alone": 1}
    (project / ".venv").rename(project / "active")
    subprocess.run(command, cwd=project, env=kept | active(project, "active"), check=True)
    assert tasks(project) == {"finetune: alone": 2}


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_the_batch_scripts_ask_for_what_resuming_needs(script: Path) -> None:
    text = script.read_text()
    options = set(re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE))
    assert options >= {"--requeue", "--open-mode=append", "--signal=B:USR1@180"}
    assert any(option.startswith("--ntasks-per-node=") for option in options)
    assert text.index("launch.sh doctor") < text.index("exec sh ")
