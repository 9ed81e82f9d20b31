"""The real pipeline in a real Slurm, on two nodes: stopped in every way, it ends as if it had not been stopped.

Each test records the job's final state in Slurm: `pytest -m slow --junitxml=FILE -o junit_family=legacy`.
"""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from helpers.slurm_cluster import SlurmCluster
from helpers.true_project import (
    EPOCHS,
    STAGES,
    Job,
    Record,
    Result,
    before_finetune,
    environment,
    kill_rank,
    result,
    true_project,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first_job(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All stages, never interrupted."""
    job = Job(cluster, true_project(tmp_path_factory.mktemp("first")))
    cluster.wait_for(job.id, seconds=180)
    return job


@pytest.fixture(scope="module")
def expected(first_job: Job) -> Result:
    return result(first_job.project)


@pytest.fixture
def project(first_job: Job, tmp_path: Path) -> Path:
    return before_finetune(first_job.project, tmp_path / "project")


@pytest.fixture
def job(cluster: SlurmCluster, project: Path) -> Job:
    """A job in the middle of finetune."""
    return Job(cluster, project).until_epoch(5)


def assert_resumes(job: Job, expected: Result, record: Record, restarts: int) -> None:
    """Wait until a job is done that resumed its finetune, and compare its result."""
    job.completes(record, restarts)
    assert "finetune: resuming " in job.output
    assert result(job.project) == expected


def test_the_pipeline_runs_from_end_to_end_and_then_has_nothing_to_do(
    cluster: SlurmCluster, first_job: Job, expected: Result, record_property: Record
) -> None:
    first_job.completes(record_property, restarts=0)
    assert first_job.stages_run() == STAGES
    assert len(expected[1]) == EPOCHS + 1  # with the start
    assert "error" not in first_job.output
    again = Job(cluster, first_job.project)
    again.completes(record_property, restarts=0)
    assert again.stages_run() == []


@pytest.mark.parametrize("epoch", [5, EPOCHS - 1])
def test_sigusr1_as_before_the_time_limit(
    cluster: SlurmCluster, project: Path, expected: Result, record_property: Record, epoch: int
) -> None:
    """Within training, and just before the early stop, which then comes after the requeue."""
    job = Job(cluster, project).until_epoch(epoch)
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    assert_resumes(job, expected, record_property, restarts=1)


def test_sigusr1_just_after_the_early_stop(
    cluster: SlurmCluster, project: Path, expected: Result, record_property: Record
) -> None:
    job = Job(cluster, project).until_epoch(EPOCHS)
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.completes(record_property, restarts=1)
    assert result(project) == expected


def test_the_time_limit(cluster: SlurmCluster, project: Path, expected: Result, record_property: Record) -> None:
    """Slurm checks time limits every 30 s, so it signals 8 to 38 s after the start, or in the next start."""
    found = Job(cluster, project, "--time=1", "--signal=B:USR1@22").ended(record_property)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0")
    assert int(found["Restarts"]) >= 1
    assert result(project) == expected


def test_a_preemption(cluster: SlurmCluster, job: Job, expected: Result, record_property: Record) -> None:
    urgent = ["-p", "urgent", "-N2", "--exclusive", "--wrap=sleep 1"]
    cluster.submit(*urgent, cwd=job.project, environment=environment())
    assert_resumes(job, expected, record_property, restarts=1)
    assert "stopped by SIGTERM" in job.output


def test_scontrol_requeue(cluster: SlurmCluster, job: Job, expected: Result, record_property: Record) -> None:
    cluster.run("scontrol", "requeue", job.id)
    assert_resumes(job, expected, record_property, restarts=1)
    assert "stopped by SIGTERM" in job.output


def cancelled(job: Job, record: Record) -> None:
    job.cluster.run("scancel", job.id)
    found = job.ended(record)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    assert "stopped by SIGTERM" in job.output


def test_scancel_and_submitted_again(
    cluster: SlurmCluster, job: Job, expected: Result, record_property: Record
) -> None:
    cancelled(job, record_property)
    assert_resumes(Job(cluster, job.project), expected, record_property, restarts=0)


def test_a_truncated_checkpoint(cluster: SlurmCluster, job: Job, expected: Result, record_property: Record) -> None:
    cancelled(job, record_property)
    (last,) = (job.project / "cache" / "runs").glob("*/last.ckpt")
    os.truncate(last, last.stat().st_size // 2)
    again = Job(cluster, job.project)
    assert_resumes(again, expected, record_property, restarts=0)
    assert re.search(r"last\.ckpt is damaged .*: resuming from the checkpoint before it", again.output)


def test_begun_on_two_nodes_and_resumed_on_one(
    cluster: SlurmCluster, job: Job, expected: Result, record_property: Record
) -> None:
    cancelled(job, record_property)
    again = Job(cluster, job.project, "--nodes=1")
    again.completes(record_property, restarts=0)
    assert "finetune: resuming " in again.output
    weights, history, report = result(job.project)
    assert len(history) == len(expected[1])
    assert report["models"]["finetune"]["accuracy"] == expected[2]["models"]["finetune"]["accuracy"]
    found, wanted = load(weights), load(expected[0])
    largest = max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)
    record_property("largest difference", largest)
    assert 0 < largest < 1e-5  # 35 epochs amplify what another order of sums rounds: 1.4e-7 and 3.7e-6 were seen


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("returns", ["at once", "later"])
def test_a_node_dies(job: Job, expected: Result, record_property: Record, rank: int, returns: str) -> None:
    """The batch script's node, and the other one, whose absence Slurm does not notice if it returns at once."""
    if not job.cluster.isolated:
        pytest.skip("to kill a node with all that it runs needs namespaces")
    node = f"node{rank + 1}"
    job.cluster.kill_node(node)
    if returns == "later":
        job.ended(record_property, "PENDING")
    job.cluster.start_node(node)
    assert_resumes(job, expected, record_property, restarts=1)
    if (rank, returns) == (1, "at once"):
        assert f"rank {rank} on {node}: no sign of life" in job.output


def test_a_rank_is_killed(cluster: SlurmCluster, job: Job, expected: Result, record_property: Record) -> None:
    kill_rank(job.id, 1)
    found = job.ended(record_property, seconds=60)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "1:0", "0")
    assert "srun: error: node2: task 1: Killed" in job.output
    assert_resumes(Job(cluster, job.project), expected, record_property, restarts=0)


def test_a_rank_fails(cluster: SlurmCluster, project: Path, expected: Result, record_property: Record) -> None:
    """Its node reads an image that differs from what was written."""
    if not cluster.isolated:
        pytest.skip("nodes without namespaces of their own see the same files")
    shard, *_ = sorted((project / "data" / "prepared").glob("*.bin"))
    damaged = project.with_name("damaged")
    damaged.write_bytes(bytes(shard.stat().st_size))
    cluster.run("srun", "--nodelist=node2", "mount", "--bind", str(damaged), str(shard))
    try:
        job = Job(cluster, project)
        found = job.ended(record_property)
    finally:
        cluster.run("srun", "--nodelist=node2", "umount", str(shard))
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "1:0", "0")
    assert re.search(r"rank 1 on node2: error: \S+ is damaged: the image \S+ is not as it was stored", job.output)
    Job(cluster, project).completes(record_property, restarts=0)
    assert result(project) == expected


@pytest.fixture
def small_disk(cluster: SlurmCluster, project: Path) -> Iterator[Path]:
    """16 MB for the checkpoints, on both nodes, which see what is mounted before they start."""
    disk = project / "cache" / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    for node in cluster.names:
        cluster.kill_node(node)
        cluster.start_node(node)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(
    cluster: SlurmCluster, project: Path, small_disk: Path, expected: Result, record_property: Record
) -> None:
    job = Job(cluster, project).until_epoch(5)
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'full'}"], check=False, capture_output=True)
    found = job.ended(record_property)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "1:0", "0")
    assert re.search(r"error: the checkpoint after epoch \d+ can't be saved in .*: free some space there", job.output)
    (small_disk / "full").unlink()
    assert_resumes(Job(cluster, project), expected, record_property, restarts=0)


def test_a_sweep(cluster: SlurmCluster, project: Path, record_property: Record) -> None:
    """Four experiments, each in a clone, two at a time, and collected."""
    lines = [f"-S finetune.epochs={epochs}\n" for epochs in range(1, 5)]
    (project / "slurm" / "sweep.txt").write_text("".join(lines))
    script = project / "slurm" / "sweep.sbatch"
    script.write_text(script.read_text().replace("sh slurm/launch.sh doctor", ": "))
    run(project, "git", "add", "-A")
    run(project, "git", "commit", "-qm", "sweep")
    sweep = Job(cluster, project, "--nodes=1", script="slurm/sweep.sbatch")
    for task in range(1, 5):
        record = cluster.wait_for(f"{sweep.id}_{task}", seconds=240)
        record_property("slurm", f"{record['JobState']}, exit code {record['ExitCode']}")
        assert record["JobState"] == "COMPLETED", (project / f"slurm-{sweep.id}_{task}.out").read_text()
    run(project, "sh", "slurm/collect.sh")
    shown = csv.DictReader(run(project, sys.executable, "-m", "dvc", "exp", "show", "--csv").splitlines())
    epochs = {row["Experiment"]: row["epochs"] for row in shown if row["Experiment"]}
    assert epochs == {f"sweep-{sweep.id}-{task}": str(task) for task in range(1, 5)}


def run(project: Path, *command: str) -> str:
    return subprocess.run(command, cwd=project, env=environment(), check=True, capture_output=True, text=True).stdout
