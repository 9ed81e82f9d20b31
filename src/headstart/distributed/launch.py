"""How a stage's processes start, and how they connect.

Slurm's srun and torchrun start a process for each rank and describe it in the environment; without them
``run.devices`` sets how many processes Lightning starts on this machine.
"""

import logging
import os
import signal
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.run_state import rank_of_process
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.process_group import ProcessGroup, device_of, use_cores

MINUTES_AFTER_WATCHDOG = 2
"""Collectives time out later than the watchdog, which names the rank to blame."""


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


def launch(processes: Layout, timeout_minutes: float, timeout: timedelta | None = None) -> ProcessGroup:
    """Start the processes that no launcher has started, connect all, and divide this machine's cores among its own.

    There are at least two. ``timeout`` as in ``connect``.

    Raises RuntimeError where not all connected within ``timeout_minutes``, which are ``run``'s.
    """
    # Lightning's default would be the device's backend alone, but the ranks also exchange CPU tensors.
    backend = "cpu:gloo,cuda:nccl" if processes.accelerator == "gpu" else "gloo"
    timeout = timeout or timedelta(minutes=timeout_minutes + MINUTES_AFTER_WATCHDOG)
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
    with watch_heartbeats(rank_of_process(), processes.world, timeout_minutes):
        fabric.launch()
    use_cores(processes.local_world)
    group = dist.new_group(backend="gloo", timeout=timeout)
    if fabric.global_rank:
        logging.getLogger("headstart").setLevel(logging.ERROR)
    return ProcessGroup(fabric.global_rank, fabric.world_size, processes.local_world, fabric.device, group)
