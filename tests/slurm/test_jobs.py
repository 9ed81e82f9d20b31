"""What becomes of a job that is stopped: `headstart repro` under a real Slurm, with stages that only count.

Each test notes what Slurm's record said in the end: `pytest -m slow --junitxml=FILE -o junit_family=legacy`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.core.io import write_json
from headstart.core.paths import STOPPED
from helpers.fake_project import environment, fake_project, log
from helpers.slurm_cluster import ENDED, SlurmCluster

Record = Callable[[str, object], None]
OPTIONS = ["--gpus-per-node=0", "--cpus-per-task=1"]
TWO_NODES = [*OPTIONS, "--nodes=2", "--ntasks-per-node=2"]
STEPS = 40


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return fake_project(tmp_path / "project", finetune=STEPS)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


class Submitted:
    """A job, from when its finetune counts."""

    def __init__(self, cluster: SlurmCluster, project: Path, *options: str, script: str = "slurm/repro.sbatch") -> None:
        self.cluster, self.project, self.start = cluster, project, time.monotonic()
        self.job = cluster.submit(*options, script, cwd=project, environment=environment(project))
        self.until_it_counts()

    def until_it_counts(self, starts: int = 1) -> None:
        """Wait until rank 0 has begun so many times, and done some steps."""
        until(lambda: len(steps(self.project)) >= starts)
        time.sleep(1)

    def output(self) -> str:
        return "".join(path.read_text() for path in self.project.glob("slurm-*.out"))

    def ended(self, record: Record, *states: str) -> dict[str, str]:
        """Wait for its end, or the states, and note what Slurm says."""
        found = self.cluster.wait_for(self.job, *(states or ENDED))
        seconds = time.monotonic() - self.start
        code, restarts = found["ExitCode"], found["Restarts"]
        record("slurm", f"{found['JobState']}, exit code {code}, {restarts} restarts, {seconds:.0f} s")
        return found


def steps(project: Path) -> list[int]:
    """Where each start of rank 0's finetune began; ``STEPS`` at the end if it is done."""
    begun = [int(line.split()[-1]) for line in log(project) if line.startswith("finetune 0/") and "from" in line]
    report = project / "finetune.json"
    return [*begun, json.loads(report.read_text())["steps"]] if report.exists() else begun


def assert_nothing_lost(project: Path) -> None:
    saved = [int(line.split()[4]) for line in log(project) if line.startswith("finetune 0/") and "saved" in line]
    assert saved
    assert steps(project) == [0, *saved, STEPS]
    assert sum(line.startswith("prepare 0/") and "from" in line for line in log(project)) == 1


def test_sigusr1_to_the_batch_script_saves_and_the_next_start_goes_on(
    cluster: SlurmCluster, project: Path, record_property: Record
) -> None:
    """As before the time limit, on two nodes with two tasks each."""
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.run("scancel", "--batch", "--signal=USR1", job.job)
    record = job.ended(record_property)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert_nothing_lost(project)
    assert f"headstart repro: job {job.job} is queued again\n" in job.output()
    assert [line for line in log(project) if line.startswith("finetune 3/4")]


@pytest.mark.slow
def test_sigusr1_to_the_tasks_alone_does_the_same(
    cluster: SlurmCluster, project: Path, record_property: Record
) -> None:
    """As from --signal without B:, seen until it is queued again."""
    job = Submitted(cluster, project, *OPTIONS)
    cluster.run("scancel", "--signal=USR1", job.job)
    record = job.ended(record_property, "PENDING")
    assert "saved" in log(project)[-1]
    assert f"job {job.job} is queued again" in job.output()
    assert record["Restarts"] == "1"
    cluster.run("scancel", job.job)


def test_scancel_saves_and_does_not_requeue(cluster: SlurmCluster, project: Path, record_property: Record) -> None:
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.run("scancel", job.job)
    record = job.ended(record_property)
    until(lambda: sum("saved" in line for line in log(project)) == 4)
    assert (record["JobState"], record["Restarts"]) == ("CANCELLED", "0")
    assert "queued again" not in job.output()


@pytest.mark.slow
def test_ctrl_c_reaches_all_tasks(cluster: SlurmCluster, project: Path, record_property: Record) -> None:
    """By itself srun would answer the first one with a status."""
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.run("scancel", "--batch", "--signal=INT", job.job)
    record = job.ended(record_property)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "130:0", "0")
    assert sum("SIGINT" in line for line in log(project)) == 4


@pytest.mark.slow
def test_a_job_that_must_not_be_requeued_is_told_so(
    cluster: SlurmCluster, project: Path, record_property: Record
) -> None:
    job = Submitted(cluster, project, *OPTIONS, "--no-requeue")
    cluster.run("scancel", "--batch", "--signal=USR1", job.job)
    record = job.ended(record_property)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "1:0", "0")
    assert f"error: job {job.job} is not queued again (" in job.output()
    assert "submit it again, best with #SBATCH --requeue" in job.output()


@pytest.mark.slow
def test_the_time_limit(cluster: SlurmCluster, tmp_path: Path, record_property: Record) -> None:
    """Slurm looks every 30 s at what comes near its limit."""
    project = fake_project(tmp_path / "project", finetune=450)
    job = Submitted(cluster, project, *TWO_NODES, "--time=1", "--signal=B:USR1@20")
    record = job.ended(record_property)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    begun = steps(project)
    assert begun[0] == 0 < begun[1] < begun[2] == 450


@pytest.mark.slow
def test_a_preemption(cluster: SlurmCluster, project: Path, record_property: Record) -> None:
    job = Submitted(cluster, project, *TWO_NODES, "--exclusive")
    urgent = ["-p", "urgent", "-N2", "--exclusive", "--wrap=sleep 1"]
    cluster.submit(*urgent, cwd=project, environment=environment(project))
    record = job.ended(record_property)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert_nothing_lost(project)
    assert "headstart repro: job" not in job.output()  # Slurm does it


@pytest.mark.slow
def test_scontrol_requeue(cluster: SlurmCluster, project: Path, record_property: Record) -> None:
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.run("scontrol", "requeue", job.job)
    record = job.ended(record_property)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert_nothing_lost(project)


@pytest.mark.slow
def test_starts_that_come_no_further_end(cluster: SlurmCluster, tmp_path: Path, record_property: Record) -> None:
    project = fake_project(tmp_path / "project", finetune=STEPS, stuck=True)
    job = Submitted(cluster, project, *OPTIONS)
    for start in range(1, 5):
        job.until_it_counts(start)
        cluster.run("scancel", "--batch", "--signal=USR1", job.job)
    record = job.ended(record_property)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "1:0", "3")
    assert f"error: job {job.job} is not queued again: its last 3 starts made no progress" in job.output()


@pytest.mark.slow
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_node_dies(cluster: SlurmCluster, tmp_path: Path, record_property: Record, node: str) -> None:
    """The batch script's, which takes DVC with it, and another; each comes back when Slurm has noticed."""
    if not cluster.isolated:
        pytest.skip("to kill a node with all that it runs needs namespaces")
    project = fake_project(tmp_path / "project", finetune=10_000)
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.kill_node(node)
    job.ended(record_property, "PENDING")
    (project / "fake.json").write_text((project / "fake.json").read_text().replace("10000", str(STEPS)))
    cluster.start_node(node)
    record = job.ended(record_property)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    begun = steps(project)
    assert begun[0] == 0
    assert (begun[1] > 0) is (node == "node2")  # the rank that saves was told, or was gone


@pytest.mark.slow
def test_a_node_dies_and_returns(cluster: SlurmCluster, tmp_path: Path, record_property: Record) -> None:
    """Slurm shows RUNNING for ever; the ranks notice, of which the marker here stands for all."""
    if not cluster.isolated:
        pytest.skip("to kill a node with all that it runs needs namespaces")
    project = fake_project(tmp_path / "project", finetune=10_000)
    job = Submitted(cluster, project, *TWO_NODES)
    cluster.kill_node("node2")
    cluster.start_node("node2")
    marker = {"stage": "finetune", "reason": "lost", "progress": 1, "host": "node1", "message": "rank 2 on node2: gone"}
    write_json(project / STOPPED, marker | {"start": (project / ".headstart" / "start").read_text()})
    (project / "fake.json").write_text((project / "fake.json").read_text().replace("10000", str(STEPS)))
    record = job.ended(record_property)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1")
    assert "headstart repro: rank 2 on node2: gone" in job.output()
