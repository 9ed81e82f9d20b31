"""The processes that work on one stage together, and what they exchange."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import joblib
import torch
import torch.distributed as dist
from torch import Tensor

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError

Value = TypeVar("Value")


def device_of(run: RunConfig) -> torch.device:
    """Choose the kind of device; raises UserError where this machine lacks ``run.accelerator``."""
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in available if available[name]) if run.accelerator == "auto" else run.accelerator
    if not available[name]:
        raise UserError(f"run.accelerator: no {name} on this machine; use auto or cpu")
    return torch.device("cuda" if name == "gpu" else name)


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

    def run_on_all(self, function: Callable[[], Value]) -> Value:
        """Call the function on every rank, and return its result once all are done; all raise the first error."""
        result: Value | None = None
        error: UserError | OSError | None = None
        try:
            result = function()
        except (UserError, OSError) as raised:
            error = raised
        errors: list[UserError | OSError | None] = [error] * self.world
        if self.group is not None:
            dist.all_gather_object(errors, error, group=self.group)
        for each in errors:
            if each is not None:
                raise each
        return cast("Value", result)

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


def use_cores(processes: int) -> None:
    """Limit torch's threads to this process's part of the cores, which so many processes of this machine divide."""
    torch.set_num_threads(min(torch.get_num_threads(), cores_of_process(processes)))


def cores_of_process(processes: int) -> int:
    """Return how many cores each of this machine's processes may use: srun's number, else an equal part.

    A container's quota of CPU time is respected, which torch ignores.
    """
    cores: int = joblib.cpu_count()
    return max(1, min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores // processes))))
