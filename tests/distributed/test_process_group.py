"""How many processes there are, by the environment that each launcher sets."""

import os
import socket

import joblib
import pytest
import torch

from headstart.core.errors import UserError
from headstart.distributed import launch, process_group
from headstart.distributed.launch import SlurmTasks, layout
from headstart.distributed.process_group import ProcessGroup
from helpers.images import params

LAUNCHERS = ("SLURM", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what Lightning sets is undone
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


def counts(**changes: int | str) -> tuple[int, int, int, int]:
    """Return devices that a process sees, nodes, processes per node, processes."""
    made = layout(params({f"run.{name}": value for name, value in changes.items()}).run)
    return made.devices, made.nodes, made.local_world, made.world


def srun(monkeypatch: pytest.MonkeyPatch, tasks: int, nodes: int, **more: str) -> None:
    given = {"STEP_ID": "0", "STEP_NUM_TASKS": str(tasks), "STEP_NUM_NODES": str(nodes), "JOB_NAME": "bash"}
    for name, value in {**given, **more}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(launch, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_without_a_launcher_the_params_decide() -> None:
    assert counts() == (1, 1, 1, 1)
    assert counts(devices=4) == (4, 1, 4, 4)


def test_without_a_launcher_auto_is_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8)
    assert counts() == (8, 1, 8, 8)


def test_a_batch_script_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "1", "NTASKS": "4", "PROCID": "0", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert counts() == (1, 1, 1, 1)


def test_sruns_tasks_are_taken_whatever_the_job_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch, tasks=6, nodes=3)
    assert counts() == (2, 3, 2, 6)
    assert isinstance(layout(params().run).environment, SlurmTasks)
    with pytest.raises(UserError, match=r"run\.devices: 4, but 2 processes a node were started"):
        counts(devices=4)
    srun(monkeypatch, tasks=5, nodes=3)
    with pytest.raises(UserError, match="5 tasks can't be divided equally among 3 nodes"):
        counts()


@pytest.mark.parametrize(("visible", "devices", "local_rank"), [(4, 4, 3), (1, 1, 0)], ids=["all", "one each"])
def test_a_task_finds_its_gpu_among_all_and_where_it_sees_its_own_only(
    monkeypatch: pytest.MonkeyPatch, visible: int, devices: int, local_rank: int
) -> None:
    srun(monkeypatch, tasks=8, nodes=2, LOCALID="3", PROCID="7", NODEID="1", NTASKS="8")
    gpus(monkeypatch, visible)
    assert counts() == (devices, 2, 4, 8)
    tasks = SlurmTasks()
    assert (tasks.local_rank(), tasks.global_rank(), tasks.node_rank(), tasks.world_size()) == (local_rank, 7, 1, 8)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    with pytest.raises(UserError, match=r"2 processes on .* 1 GPUs for them"):
        counts(devices=2)
    srun(monkeypatch, tasks=8, nodes=2)
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=r"4 processes on .* 2 GPUs for them: start one a GPU"):
        counts()


@pytest.mark.parametrize("within_srun", [False, True])
def test_torchruns_processes_are_taken(monkeypatch: pytest.MonkeyPatch, within_srun: bool) -> None:
    if within_srun:  # one task a node, which starts torchrun
        srun(monkeypatch, tasks=2, nodes=2)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert counts() == (3, 2, 3, 6)


def test_a_first_node_that_does_not_resolve_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODELIST", "nowhere[3-4]")

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"the first node, nowhere3, does not resolve on .*MASTER_ADDR"):
        _ = SlurmTasks().main_address


def test_a_single_process_broadcasts_to_itself() -> None:
    def refused() -> None:
        raise UserError("no")

    assert ProcessGroup().broadcast_from_rank_zero(lambda: 3) == 3
    assert ProcessGroup(rank=1, world=2).run_on_rank_zero(lambda: 3) is None
    assert [each.tolist() for each in ProcessGroup().gather(torch.ones(2))] == [[1.0, 1.0]]
    assert [each.tolist() for each in ProcessGroup().gather_on_rank_zero(torch.ones(2))] == [[1.0, 1.0]]
    with pytest.raises(UserError, match="no"):
        ProcessGroup().run_on_rank_zero(refused)


@pytest.mark.parametrize(("cores", "processes", "asked", "threads"), [(8, 2, None, 4), (8, 2, "3", 3), (1, 4, None, 1)])
def test_processes_divide_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, asked: str | None, threads: int
) -> None:
    if asked:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    process_group.use_cores(processes)
    assert taken == [threads]
