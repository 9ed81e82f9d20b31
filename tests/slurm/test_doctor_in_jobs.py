"""`headstart doctor` in a job of a real Slurm: what it finds on two nodes, one of which is spoilt."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from helpers.images import params
from helpers.slurm_cluster import SlurmCluster

SCRIPT = f"""#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=10
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=out
exec {sys.executable} -m headstart doctor "$0" --json
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    YAML().dump(params({"run.cache": str(tmp_path / "cache")}).model_dump(), tmp_path / "params.yaml")
    (tmp_path / "job.sbatch").write_text(SCRIPT)
    return tmp_path


def findings(cluster: SlurmCluster, project: Path) -> list[tuple[str, str]]:
    """Run the job; what was measured is left out."""
    job = cluster.submit("job.sbatch", cwd=project, environment=os.environ)
    record = cluster.wait_for(job)
    found = json.loads((project / "out").read_text())
    assert record["ExitCode"] == ("1:0" if any(each["severity"] == "error" for each in found) else "0:0")
    assert [path.name for path in (project / "cache").iterdir()] == []
    return [(each["name"], each["message"]) for each in found if each["severity"] != "info"]


@contextmanager
def mounted(cluster: SlurmCluster, node: str, target: str, *source: str) -> Iterator[None]:
    """Mount something over a path, as only one node sees it."""
    if not cluster.isolated:
        pytest.skip("nodes without namespaces of their own can't be spoilt one by one")
    # umount reads /proc, which is of the node's process ids.
    inside = ["nsenter", "--target", _slurmd(cluster, node), "--mount", "--pid"]
    subprocess.run([*inside, "mount", *source, target], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", target], check=True)


def _slurmd(cluster: SlurmCluster, node: str) -> str:
    """Return the process id of a node's daemon, of this cluster among others."""
    mine = f"SLURM_CONF={cluster.environment['SLURM_CONF']}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # ended meanwhile
            continue
        if command == f"slurmd\0-D\0-N\0{node}\0".encode() and mine in environment:
            return process.name
    raise AssertionError(node)


def test_two_good_nodes(cluster: SlurmCluster, project: Path) -> None:
    assert findings(cluster, project) == []
    assert [each["name"] for each in json.loads((project / "out").read_text())] == ["save", "network"]


@pytest.mark.slow
def test_a_host_name_that_one_node_can_not_resolve(cluster: SlurmCluster, project: Path) -> None:
    hosts = project / "hosts"
    hosts.write_text("127.0.0.1 localhost node2\n")
    with mounted(cluster, "node2", "/etc/hosts", "--bind", str(hosts)):
        ((name, message),) = findings(cluster, project)
    assert name == "host-unresolved"
    assert message.startswith("node2 can't resolve node1: ")


@pytest.mark.slow
def test_a_rank_that_never_comes(cluster: SlurmCluster, project: Path) -> None:
    asleep = project / "asleep"
    asleep.write_text("#!/bin/sh\nexec sleep 600\n")
    asleep.chmod(0o755)
    with mounted(cluster, "node2", os.path.realpath(sys.executable), "--bind", str(asleep)):
        ((name, message),) = findings(cluster, project)
    assert name == "rank-missing"
    assert message.startswith("rank 1 on node2 did not start ")


@pytest.mark.slow
def test_a_project_that_one_node_does_not_see(cluster: SlurmCluster, project: Path) -> None:
    (project / "cache").mkdir()
    with mounted(cluster, "node2", str(project), "-t", "tmpfs", "tmpfs"):
        found = findings(cluster, project)
    assert [name for name, _ in found] == ["folder-not-shared", "folder-not-shared"]
    assert f"node2 does not see {project}/.headstart as the first node does" in found[0][1]
    assert f"node2 does not see {project}/cache" in found[1][1]


@pytest.mark.slow
def test_a_lock_that_holds_on_one_node_alone(cluster: SlurmCluster, project: Path) -> None:
    """An overlay has files of its own as soon as they are opened for writing, as a mount with local locks has."""
    over = project.with_name("over")
    for name in ("upper", "work", "cache"):
        (over / name).mkdir(parents=True)
    shutil.rmtree(project / "cache", ignore_errors=True)
    (project / "cache").mkdir()
    layers = f"lowerdir={project / 'cache'},upperdir={over / 'upper'},workdir={over / 'work'}"
    with mounted(cluster, "node2", str(project / "cache"), "-t", "overlay", "overlay", "-o", layers):
        found = findings(cluster, project)
    assert [name for name, _ in found] == ["lock-not-shared"]
