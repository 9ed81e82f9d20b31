"""The processes that work on one stage together: found, started and connected.

Slurm's srun and torchrun start a process for each rank and say so in the environment; without them ``run.devices``
says how many Lightning is to start on this machine.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import joblib
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.run_state import rank_of_process
from headstart.distributed.heartbeat import watch_heartbeats

Result = TypeVar("Result")
MINUTES_AFTER_THE_WATCHDOG = 2


def device_of(run: RunConfig) -> torch.device:
    """Choose the kind of device of a stage that uses one; raises UserError where ``run.accelerator`` isn't there."""
    found = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if run.accelerator == "auto":
        chosen = next(name for name, there in found.items() if there)
    elif found[run.accelerator]:
        chosen = run.accelerator
    else:
        raise UserError(f"run.accelerator: no {run.accelerator} on this machine; use auto or cpu")
    return torch.device("cuda" if chosen == "gpu" else chosen)


class SlurmTasks(SLURMEnvironment):
    """srun's tasks, whatever the job is called, and whether each sees all GPUs of its node or one of its own."""

    def __init__(self) -> None:
        """Do without Lightning's own requeueing, which saves within a signal handler and can deadlock there."""
        self.auto_requeue, self.requeue_signal = False, signal.SIGUSR1  # it wants one even so

    @property
    def main_address(self) -> str:
        """Return the first node's name; raises UserError where it doesn't resolve: a rendezvous would hang."""
        address: str = super().main_address
        try:
            socket.getaddrinfo(address, None)
        except OSError:
            raise UserError(
                f"the first node, {address}, does not resolve on {socket.gethostname()}: have it added to /etc/hosts "
                "or DNS, or set MASTER_ADDR to an address of it"
            ) from None
        return address

    def local_rank(self) -> int:
        """Return the index of this task's GPU among those that it sees."""
        own_gpu = torch.cuda.device_count() == 1
        return 0 if own_gpu else super().local_rank()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Leave the numbers to ``layout``, which takes them from srun."""


@dataclass(frozen=True)
class Layout:
    """How many processes there are, as Lightning's Trainer and Fabric are told.

    Attributes:
        accelerator: Lightning's name of it.
        devices: that a process may see, which is the processes of a node where each sees all.
        nodes: machines.
        environment: who started the processes.
        local_world: processes of this machine.
        world: processes in all.
    """

    accelerator: str
    devices: int
    nodes: int
    environment: Any
    local_world: int
    world: int


def layout(run: RunConfig) -> Layout:
    """Say how many processes there are, by srun, by torchrun or by ``run.devices``.

    Raises:
        UserError: ``run.devices`` says otherwise than srun or torchrun, or srun's tasks and the GPUs don't fit.
    """
    kind = device_of(run).type
    accelerator, gpus = {"cuda": "gpu"}.get(kind, kind), torch.cuda.device_count() if kind == "cuda" else 0
    if TorchElasticEnvironment.detect():  # which srun may have started
        environment: Any = TorchElasticEnvironment()
        world = int(os.environ["WORLD_SIZE"])
        nodes = world // int(os.environ["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_ID" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:
        environment = SlurmTasks()
        world, nodes = (int(os.environ[f"SLURM_STEP_NUM_{what}"]) for what in ("TASKS", "NODES"))
    else:
        environment = LightningEnvironment()
        world, nodes = max(1, gpus) if run.devices == "auto" else run.devices, 1
    if world % nodes:
        raise UserError(f"{world} tasks can't be shared equally by {nodes} nodes: ask Slurm for --ntasks-per-node")
    local = world // nodes
    if run.devices not in ("auto", local):
        raise UserError(f"run.devices: {run.devices}, but {local} processes a node were started; use auto")
    own_gpus = gpus == 1 and isinstance(environment, SlurmTasks)  # as --gpus-per-task binds them
    if gpus and local > gpus and not own_gpus:
        raise UserError(
            f"{local} processes on {socket.gethostname()}, which has {gpus} GPUs for them: start one a GPU "
            "(#SBATCH --ntasks-per-node)"
        )
    return Layout(accelerator, 1 if own_gpus else local, nodes, environment, local, world)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that work on a stage.

    Attributes:
        rank: its number.
        world: how many there are.
        local_world: how many of them are on this machine.
        device: its own.
        group: what connects them for CPU tensors; None where there is one alone.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None

    def run_on_rank_zero(self, function: Callable[[], Result]) -> Result | None:
        """Let rank 0 do something that the others wait for; a UserError is raised on all.

        Returns:
            What it gave, on rank 0; None on the others.
        """
        result: Result | None = None
        error: list[UserError | None] = [None]
        if self.rank == 0:
            try:
                result = function()
            except UserError as its:
                error[0] = its
        if self.group is not None:
            dist.broadcast_object_list(error, src=0, group=self.group)
        if error[0] is not None:
            raise error[0]
        return result

    def broadcast_from_rank_zero(self, function: Callable[[], Result]) -> Result:
        """Let rank 0 find something out and tell all; a UserError is raised on all."""
        answer: list[Any] = [self.run_on_rank_zero(function)]
        if self.group is not None:
            dist.broadcast_object_list(answer, src=0, group=self.group)
        result: Result = answer[0]
        return result

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's CPU tensor, of one shape and dtype, to all."""
        if self.group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(gathered, tensor.contiguous(), group=self.group)
        return gathered


def connect(run: RunConfig) -> ProcessGroup:
    """Start the processes that nobody has started yet, and connect all; share this machine's cores among its own.

    Raises:
        UserError: see ``layout``.
        RuntimeError: not all came within ``run.timeout_minutes``.
    """
    found = layout(run)
    if found.world == 1:
        use_cores(1)
        return ProcessGroup(device=device_of(run))
    # Lightning's process group would be of the device's backend alone; what ranks agree on is on the CPU.
    backend = "cpu:gloo,cuda:nccl" if found.accelerator == "gpu" else "gloo"
    # Later than the watchdog, which names who is to blame.
    timeout = timedelta(minutes=run.timeout_minutes + MINUTES_AFTER_THE_WATCHDOG)
    fabric = Fabric(
        accelerator=found.accelerator,
        devices=found.devices,
        num_nodes=found.nodes,
        strategy=DDPStrategy(process_group_backend=backend, timeout=timeout),
        plugins=[found.environment],
    )
    # That the processes are connected; not that one of them has died, which Lightning says on info level too.
    for name in ("lightning.fabric.utilities.distributed", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ctrl-C ends each rank as SIGTERM does: those whose partner only raises would wait for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with watch_heartbeats(rank_of_process(), found.world, run.timeout_minutes):
        fabric.launch()
    use_cores(found.local_world)
    group = dist.new_group(backend="gloo", timeout=timeout)
    if fabric.global_rank:
        logging.getLogger("headstart").setLevel(logging.ERROR)
    return ProcessGroup(fabric.global_rank, fabric.world_size, found.local_world, fabric.device, group)


def use_cores(processes: int) -> None:
    """Take no more threads than this process's share of its machine's cores; ``processes`` share them."""
    torch.set_num_threads(min(torch.get_num_threads(), cores_of_process(processes)))


def cores_of_process(processes: int) -> int:
    """Return the cores that each of this machine's processes may use: srun says it, else they share them equally.

    A container's quota of CPU time counts, of which torch knows nothing.
    """
    cores: int = joblib.cpu_count()
    share = int(os.environ.get("SLURM_CPUS_PER_TASK", cores // processes))
    return max(1, min(cores, share))
