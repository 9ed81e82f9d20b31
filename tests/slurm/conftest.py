from collections.abc import Iterator

import pytest

from helpers.slurm_cluster import SlurmCluster, why_no_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    missing = why_no_cluster()
    if missing:
        pytest.skip(missing)
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=2) as cluster:
        yield cluster
