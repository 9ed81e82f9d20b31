"""Stopping at a step on which all ranks agree.

The signal handler only sets a flag: saving inside it, as Lightning does, deadlocks when the ranks are at different
places. The flags are exchanged by an all-reduce that starts at the end of one step and is read at the end of the next,
so no step waits for it.
"""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headstart.distributed.process_group import ProcessGroup

SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""Requests to stop: Ctrl-C, Slurm's ``--signal`` before the time limit, scancel or a preemption."""


class StopRequested(BaseException):
    """Ends a training on all ranks at the same step, after a checkpoint with so many optimiser ``steps`` is saved."""

    def __init__(self, number: int, steps: int) -> None:
        super().__init__(number, steps)
        self.signal, self.steps = signal.Signals(number), steps


class StopFlag:
    """The number of the signal that this process has received, 0 for none; the largest of several."""

    number = 0

    def handle(self, number: int, _: Any) -> None:
        """Record a signal; this is the handler."""
        self.number = max(self.number, number)


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Yield a flag that ``SIGNALS`` set; the previous handlers are restored at the end."""
    flag = StopFlag()
    previous = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class SignalSync:
    """Exchanges ``width`` integers among all ranks at each step, one step late; zeros at first."""

    def __init__(self, process_group: ProcessGroup, width: int) -> None:
        self._group, self._zeros = process_group.group, [0] * width
        self._pending: tuple[Any, Tensor] | None = None

    def exchange(self, values: Sequence[int]) -> list[int]:
        """Send this rank's values, and return the maximum over all ranks of the values of the step before.

        A single process gets its own values back at once. Every rank must call this equally often.
        """
        if self._group is None:
            return list(values)
        agreed = self._wait()
        tensor = torch.tensor(values)
        self._pending = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True), tensor
        return agreed

    def close(self) -> None:
        """Wait for the exchange that is still running; may be called more than once."""
        self._wait()

    def _wait(self) -> list[int]:
        if self._pending is None:
            return self._zeros
        work, tensor = self._pending
        work.wait()
        maximum: list[int] = tensor.tolist()
        return maximum
