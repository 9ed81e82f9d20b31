"""The memory that is left, by planted control groups, and the memory that a step takes."""

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from headstart.distributed import memory
from headstart.distributed.memory import free_memory, images_that_fit, live_bytes

GB = 10**9
V1 = {
    "memory.limit_in_bytes": "{}",
    "memory.usage_in_bytes": "{}",
    "memory.stat": "total_inactive_file {}\ntotal_active_file 0\n",
}
V2 = {"memory.max": "{}", "memory.current": "{}", "memory.stat": "anon 5\ninactive_file {}\nactive_file 0\n"}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 GB left, and no control groups yet."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GB))
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def plant(folder: Path, names: dict[str, str], *values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for (name, text), value in zip(names.items(), values, strict=True):
        (folder / name).write_text(text.format(value))


def test_without_groups_the_processes_share_what_the_machine_has() -> None:
    assert free_memory(1) == 16 * GB
    assert free_memory(4) == 4 * GB


@pytest.mark.parametrize(
    ("own", "names", "top", "seen"),
    [
        ("0::/a.slice/job", V2, "cgroup", "a.slice/job"),
        ("0::/a.slice/job", V2, "cgroup", "a.slice"),  # a limit above the process's own group
        ("0::/", V2, "cgroup", ""),  # a container with a name space
        ("0::/docker/123", V2, "cgroup", ""),  # and without
        ("9:cpu:/\n4:memory:/slurm/job_7\n0::/", V1, "cgroup/memory", "slurm/job_7"),
        ("4:hugetlb,memory:/docker/123", V1, "cgroup/memory", ""),
    ],
)
def test_a_group_s_limit_counts_and_its_cached_files_do_not(
    own: str, names: dict[str, str], top: str, seen: str, machine: Path
) -> None:
    (machine / "own").write_text(own + "\n")
    plant(machine / top / seen, names, 4 * GB, 3 * GB, 2 * GB)
    assert free_memory(1) == 3 * GB
    assert free_memory(2) == 1.5 * GB
    plant(machine / top / seen, names, 4 * GB, 5 * GB, 0)
    assert free_memory(1) == 0


def test_a_group_without_a_limit_is_none(machine: Path) -> None:
    (machine / "own").write_text("0::/user\n")
    plant(machine / "cgroup" / "user", V2, "max", GB, 0)
    assert free_memory(1) == 16 * GB
    (machine / "own").write_text("3:memory:/\n")
    plant(machine / "cgroup" / "memory", V1, 9223372036854771712, GB, 0)
    assert free_memory(1) == 16 * GB


@pytest.mark.parametrize(("limit", "used"), [("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")])
def test_ulimit_counts_for_each_process(limit: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited, ours = (resource.RLIM_INFINITY,) * 2, getattr(resource, limit)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * GB, 3 * GB) if which == ours else unlimited)
    usage = {"vms": 0, "data": 0, used: GB}
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(**usage))
    assert free_memory(2) == 2 * GB


def test_images_fit_beside_what_is_fixed() -> None:
    assert images_that_fit(GB, 1.5 * GB, 1) == (14, 14.5 * GB)
    assert images_that_fit(GB, 17 * GB, 1) == (0, 0)


def test_the_bytes_of_a_forward_pass_are_those_that_live_at_once() -> None:
    layers = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(5))).eval()  # 4 MB each: not counted
    images = torch.zeros(1, 1000)
    with torch.no_grad():
        assert live_bytes(lambda: layers(images)) == 2 * 4000  # a layer's input and output
        assert live_bytes(lambda: layers(images.repeat(8, 1))) == 3 * 8 * 4000  # and the images


def test_those_of_a_training_step_grow_with_the_images_and_leave_no_trace() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU()) for _ in range(6))).eval()
    layers[0].requires_grad_(requires_grad=False)

    def step(size: int) -> int:
        images: Tensor = torch.ones(size, 1000)
        return live_bytes(lambda: layers(images), layers)

    kept = 5 * 2 * 4000  # a linear layer's and a ReLU's output, of each layer that trains
    assert kept / 2 < step(1) < 2 * kept
    assert 1.8 < step(256) / step(128) < 2.1
    assert all(parameter.grad is None for parameter in layers.parameters())
    layers(torch.ones(1, 1000)).sum().backward()
    assert any(parameter.grad is not None for parameter in layers.parameters())  # the hooks are gone
