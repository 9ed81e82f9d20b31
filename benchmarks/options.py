"""What the command line chooses."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rounds import Contestant
from benchmarks.task import Task


@dataclass(frozen=True)
class Options:
    """What a sub-benchmark gets.

    Attributes:
        task: the matched work.
        rounds: times that each contestant runs.
        peers: the interpreter of the environment in which the peers are installed.
        only: parts of names; of all contestants those with one of them run. Empty: all.
        memory: numbers of images at which ``prepare`` has its peak memory measured.
    """

    task: Task
    rounds: int
    peers: str
    only: Sequence[str]
    memory: Sequence[int]

    def chosen(self, contestants: Sequence[Contestant]) -> Sequence[Contestant]:
        """Leave out what is not asked for."""
        return [each for each in contestants if not self.only or any(part in each.name for part in self.only)]
