"""The solver's sums over the images of several processes: rank 0 solves, the others add what it asks for.

They take no decision, since the last bits that it would hang on differ between machines.
"""

import torch
import torch.distributed as dist

from headstart.distributed.heartbeat import Watchdog
from headstart.distributed.process_group import ProcessGroup
from headstart.probe.logistic import RowSums


class SharedRows:
    """As ``RowSums``, with those of the other ranks, which meanwhile are in ``serve``; torch's tensors."""

    def __init__(self, rows: RowSums, process_group: ProcessGroup, watchdog: Watchdog) -> None:
        self._rows, self._process_group, self._watchdog = rows, process_group, watchdog

    def __call__(self, name: str, *arrays: torch.Tensor) -> list[torch.Tensor]:
        """Return the sums over the images of all ranks, on rank 0."""
        self._process_group.broadcast_from_rank_zero(lambda: (name, [(each.shape, each.dtype) for each in arrays]))
        return self._add(name, [each.contiguous() for each in arrays])

    def serve(self) -> None:
        """Add to what rank 0 asks for, until it releases the others."""
        while request := self._process_group.broadcast_from_rank_zero(lambda: None):
            name, kinds = request
            device = self._rows.features.device
            self._add(name, [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds])

    def release(self) -> None:
        """End ``serve`` on the other ranks."""
        self._process_group.broadcast_from_rank_zero(lambda: None)

    def _add(self, name: str, arrays: list[torch.Tensor]) -> list[torch.Tensor]:
        self._watchdog.beat(f"probe, {name}")
        several = self._process_group.group is not None
        for array in arrays if several else []:
            dist.broadcast(array, src=0)
        sums: list[torch.Tensor] = self._rows(name, *arrays)
        for each in sums if several else []:
            dist.reduce(each, dst=0)
        return sums
