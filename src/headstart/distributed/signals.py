"""Stopping at a step that all ranks agree on.

A signal's handler only sets a flag: to save there, as Lightning does, deadlocks when the ranks stand at different
places. The flags go round by an all-reduce that is started at one step's end and read at the next's, so no step waits.
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
"""Those that ask for a stop: Ctrl-C, Slurm's ``--signal`` before the time limit, scancel or a preemption."""


class StopRequested(BaseException):
    """Ends a training on all ranks at once, its state saved."""

    def __init__(self, number: int, steps: int) -> None:
        """Keep the signal's number, and how many optimiser steps the saved state contains."""
        super().__init__(number, steps)
        self.signal, self.steps = signal.Signals(number), steps


class StopFlag:
    """The signal that has come to this process: its number, 0 for none; of several the largest."""

    def __init__(self) -> None:
        """Begin without one."""
        self.number = 0

    def note(self, number: int, _: Any) -> None:
        """Be the handler of a signal."""
        self.number = max(self.number, number)


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Listen to the signals for a while."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    flag = StopFlag()
    for number in SIGNALS:
        signal.signal(number, flag.note)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SignalSync:
    """What the ranks tell each other at each step."""

    def __init__(self, process_group: ProcessGroup, width: int) -> None:
        """Begin with zeros.

        Args:
            process_group: who agrees.
            width: how many integers they exchange.
        """
        self._group, self._nothing = process_group.group, [0] * width
        self._pending: tuple[Any, Tensor] | None = None

    def exchange(self, values: Sequence[int]) -> list[int]:
        """Tell this rank's values, and give the largest of all ranks': of the step before, or alone of this one.

        Every rank must call it equally often.
        """
        if self._group is None:
            return list(values)
        agreed = self._nothing if self._pending is None else self._received(*self._pending)
        told = torch.tensor(values)
        self._pending = dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True), told
        return agreed

    @staticmethod
    def _received(work: Any, told: Tensor) -> list[int]:
        work.wait()
        values: list[int] = told.tolist()
        return values

    def close(self) -> None:
        """Wait for what is still going round."""
        if self._pending is not None:
            self._received(*self._pending)
