"""The processes that work on one stage together: how many there are, how they start and how they are connected.

Slurm's srun and torchrun start a process for each rank and describe it in the environment; without them
``run.devices`` sets how many processes Lightning starts on this machine.
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

Value = TypeVar("Value")
MINUTES_AFTER_WATCHDOG = 2
"""Collectives time out later than the watchdog, which names the rank to blame."""


def device_of(run: RunConfig) -> torch.device:
    """Choose the kind of device; raises UserError where this machine lacks ``run.accelerator``."""
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in available if available[name]) if run.accelerator == "auto" else run.accelerator
    if not available[name]:
        raise UserError(f"run.accelerator: no {name} on this machine; use auto or cpu")
    return torch.device("cuda" if name == "gpu" else name)


class SlurmTasks(SLURMEnvironment):
    """srun's tasks, also in jobs whose name Lightning takes for interactive, and where a task sees only its GPU."""

    def __init__(self) -> None:
        """Turn off Lightning's own requeueing, which saves inside a signal handler and can deadlock there."""
        self.auto_requeue, self.requeue_signal = False, signal.SIGUSR1  # Lightning reads the signal even so

    @property
    def main_address(self) -> str:
        """Return the first node's name; raises UserError where it doesn't resolve: a rendezvous would hang."""
        address: str = super().main_address
        try:
            socket.getaddrinfo(address, None)
        except OSError:
            what = "have it added to /etc/hosts or DNS, or set MASTER_ADDR to an address of it"
            raise UserError(f"the first node, {address}, does not resolve on {socket.gethostname()}: {what}") from None
        return address

    def local_rank(self) -> int:
        """Return the index of this task's GPU among those that it sees; 0 where it sees only its own."""
        return 0 if torch.cuda.device_count() == 1 else super().local_rank()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept any numbers: ``layout`` takes them from srun."""


@dataclass(frozen=True)
class Layout:
    """How many processes there are, in the form that Lightning's Trainer and Fabric take.

    ``devices`` is how many a process may see, the number of processes per node where each sees all; ``environment``
    the launcher; ``local_world`` counts the processes on this machine, ``world`` all.
    """

    accelerator: str
    devices: int
    nodes: int
    environment: Any
    local_world: int
    world: int


def layout(run: RunConfig) -> Layout:
    """Return how many processes srun or torchrun started, else how many ``run.devices`` asks for.

    Raises UserError where ``run.devices`` contradicts the launcher, or the numbers of tasks and of GPUs don't fit.
    """
    kind = device_of(run).type
    accelerator, gpus = {"cuda": "gpu"}.get(kind, kind), torch.cuda.device_count() if kind == "cuda" else 0
    if TorchElasticEnvironment.detect():  # first, since srun may have started torchrun
        environment: Any = TorchElasticEnvironment()
        world = int(os.environ["WORLD_SIZE"])
        nodes = world // int(os.environ["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_ID" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:
        environment = SlurmTasks()
        world, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    else:
        environment = LightningEnvironment()
        world, nodes = max(1, gpus) if run.devices == "auto" else run.devices, 1
    if world % nodes:
        raise UserError(f"{world} tasks can't be divided equally among {nodes} nodes: use Slurm's --ntasks-per-node")
    local_world = world // nodes
    if run.devices not in ("auto", local_world):
        raise UserError(f"run.devices: {run.devices}, but {local_world} processes a node were started; use auto")
    has_own_gpu = gpus == 1 and isinstance(environment, SlurmTasks)  # as --gpus-per-task binds them
    if gpus and local_world > gpus and not has_own_gpu:
        where = f"{socket.gethostname()}, which has {gpus} GPUs for them"
        raise UserError(f"{local_world} processes on {where}: start one a GPU (#SBATCH --ntasks-per-node)")
    return Layout(accelerator, 1 if has_own_gpu else local_world, nodes, environment, local_world, world)


@dataclass(frozen=True)
class ProcessGroup:
    """This process and the others that work on the same stage.

    ``world`` are all, ``local_world`` those on this machine; ``group`` is torch's for CPU tensors, None for a single
    process.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None

    def run_on_rank_zero(self, function: Callable[[], Value]) -> Value | None:
        """Call the function on rank 0 while the others wait, and return its result there; all raise its error."""
        result: Value | None = None
        error: list[UserError | OSError | None] = [None]
        if self.rank == 0:
            try:
                result = function()
            except (UserError, OSError) as raised:
                error[0] = raised
        if self.group is not None:
            dist.broadcast_object_list(error, src=0, group=self.group)
        if error[0] is not None:
            raise error[0]
        return result

    def broadcast_from_rank_zero(self, function: Callable[[], Value]) -> Value:
        """Call the function on rank 0, and return its result on all ranks; all raise its error."""
        results: list[Any] = [self.run_on_rank_zero(function)]
        if self.group is not None:
            dist.broadcast_object_list(results, src=0, group=self.group)
        result: Value = results[0]
        return result

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all ranks, which must have one shape and dtype, on every rank."""
        if self.group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(gathered, tensor.contiguous(), group=self.group)
        return gathered

    def gather_on_rank_zero(self, tensor: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all ranks, which must have one shape and dtype, on rank 0; no tensor elsewhere."""
        if self.group is None:
            return [tensor]
        gathered = [] if self.rank else [torch.empty_like(tensor) for _ in range(self.world)]
        dist.gather(tensor.contiguous(), gathered or None, group=self.group)
        return gathered


def connect(run: RunConfig) -> ProcessGroup:
    """Start the processes that no launcher has started, connect all, and divide this machine's cores among its own.

    Raises UserError as ``layout`` does, and RuntimeError where not all connected within ``run.timeout_minutes``.
    """
    processes = layout(run)
    if processes.world == 1:
        use_cores(1)
        return ProcessGroup(device=device_of(run))
    # Lightning's default would be the device's backend alone, but the ranks also exchange CPU tensors.
    backend = "cpu:gloo,cuda:nccl" if processes.accelerator == "gpu" else "gloo"
    timeout = timedelta(minutes=run.timeout_minutes + MINUTES_AFTER_WATCHDOG)
    fabric = Fabric(
        accelerator=processes.accelerator,
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=DDPStrategy(process_group_backend=backend, timeout=timeout),
        plugins=[processes.environment],
    )
    # Hides the news that processes are connected, not the death of one, which Lightning also logs as info elsewhere.
    for name in ("lightning.fabric.utilities.distributed", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ctrl-C ends each rank as SIGTERM does: a rank that only raised would wait for its partners.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with watch_heartbeats(rank_of_process(), processes.world, run.timeout_minutes):
        fabric.launch()
    use_cores(processes.local_world)
    group = dist.new_group(backend="gloo", timeout=timeout)
    if fabric.global_rank:
        logging.getLogger("headstart").setLevel(logging.ERROR)
    return ProcessGroup(fabric.global_rank, fabric.world_size, processes.local_world, fabric.device, group)


def use_cores(processes: int) -> None:
    """Limit torch's threads to this process's part of the cores, which so many processes of this machine divide."""
    torch.set_num_threads(min(torch.get_num_threads(), cores_of_process(processes)))


def cores_of_process(processes: int) -> int:
    """Return how many cores each of this machine's processes may use: srun's number, else an equal part.

    A container's quota of CPU time is respected, which torch ignores.
    """
    cores: int = joblib.cpu_count()
    return max(1, min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores // processes))))
