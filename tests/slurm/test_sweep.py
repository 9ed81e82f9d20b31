"""slurm/sweep.sbatch and slurm/collect.sh under a real Slurm, with stages that only count."""

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.fake_project import environment, fake_project, log
from helpers.slurm_cluster import SlurmCluster

STEPS = [10, 11, 12, 50]


@pytest.mark.slow
def test_a_sweep_is_run_in_clones_and_collected(
    cluster: SlurmCluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its last task is stopped, requeued and resumes."""
    project = fake_project(tmp_path / "project", prepare=3)
    lines = [f"-S 'fake.json:finetune={steps}' -S fake.json:saving=0.1\n" for steps in STEPS]
    (project / "slurm" / "sweep.txt").write_text("".join(lines))
    run(project, "git", "commit", "-qam", "sweep")
    job = cluster.submit(
        "--gpus-per-node=0", "-c1", "slurm/sweep.sbatch", cwd=project, environment=environment(project)
    )
    last, clone = f"{job}_{len(STEPS)}", project / ".headstart" / "sweep" / job / str(len(STEPS))
    cluster.wait_for(last, "RUNNING")
    while not any(line.startswith("finetune") for line in log(clone)):
        time.sleep(0.1)
    time.sleep(1)
    cluster.run("scancel", "--batch", "--signal=USR1", last)
    records = [cluster.wait_for(f"{job}_{i + 1}") for i in range(len(STEPS))]
    for record in records:
        record_property("slurm", f"{record['JobState']}, exit code {record['ExitCode']}, {record['Restarts']} restarts")
    assert [(record["JobState"], record["Restarts"]) for record in records] == [("COMPLETED", "0")] * 3 + [
        ("COMPLETED", "1")
    ]
    assert not any(line.startswith("prepare") for line in log(clone)), "the others had done it"

    run(project, "sh", "slurm/collect.sh")
    shown = csv.DictReader(run(project, sys.executable, "-m", "dvc", "exp", "show", "--csv").splitlines())
    steps = {row["Experiment"]: row["finetune.json:steps"] for row in shown if row["Experiment"]}
    assert steps == {f"sweep-{job}-{i + 1}": str(steps) for i, steps in enumerate(STEPS)}
    run(project, sys.executable, "-m", "dvc", "exp", "apply", f"sweep-{job}-2")
    assert (project / "finetune.json").read_text() == '{"steps": 11}'


def run(project: Path, *command: str) -> str:
    return subprocess.run(
        command, cwd=project, env=environment(project), check=True, capture_output=True, text=True
    ).stdout
