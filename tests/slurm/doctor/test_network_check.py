"""The tasks' connection to rank 0, by threads of this process."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from headstart.slurm.doctor import network_check


def test_all_ranks_connect_or_the_missing_one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("", 0))
        port = one.getsockname()[1]
    monkeypatch.setattr(network_check, "CONNECT_TIMEOUT_S", 5)
    with ThreadPoolExecutor() as ranks:
        assert list(ranks.map(lambda rank: network_check.connect_ranks(rank, 3, "127.0.0.1", port), range(3))) == [
            [],
            [],
            [],
        ]
        monkeypatch.setattr(network_check, "CONNECT_TIMEOUT_S", 1)
        assert list(ranks.map(lambda rank: network_check.connect_ranks(rank, 4, "127.0.0.1", port), [0, 1, 3])) == [
            [2],
            [1],
            [3],
        ]
