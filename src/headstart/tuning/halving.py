"""Which try is trained next, and up to which epoch: asynchronous successive halving within a wall clock.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934): after so many epochs (a
rung) the best third of the tries that have come so far goes on to three times as many. Each try has the schedule of a
whole training from its first step and is only stopped in it, so the winner's whole training is a continuation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from headstart.training.figures import HistoryRow, Monitor

KEPT = 3
"""One in so many goes on."""


@dataclass
class Try:
    """A try, as its file has it.

    Attributes:
        number: from 0, the params as they are.
        changes: its values by dotted key.
        goal: epochs that it is to reach next.
        rows: figures by epoch, the start's (epoch 0) first.
        over: whether the training has reached its last epoch or stopped early.
        failed: why it can't be trained, empty where it can.
        applied: see ``Observer``.
        seconds: of wall clock, all its trainings together.
        trainings: how often it was started.
        run: the folder of its checkpoints.
    """

    number: int
    changes: dict[str, Any]
    goal: int
    rows: list[HistoryRow] = field(default_factory=list)
    over: bool = False
    failed: str = ""
    applied: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    trainings: int = 0
    run: str = ""

    @property
    def epochs(self) -> int:
        """Epochs that are trained."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def epoch_seconds(self) -> float:
        """Seconds in epochs."""
        return float(sum(row["seconds"] for row in self.rows[1:]))

    def has_reached(self, epochs: int) -> bool:
        """Return whether it needs no training to be compared after so many epochs."""
        return self.over or bool(self.failed) or self.epochs >= epochs

    def best(self, monitor: Monitor, epochs: float = math.inf) -> HistoryRow:
        """Return the row of the best epoch, at most ``epochs``; the first of equal ones, as early stopping does."""
        rows = [row for row in self.rows if row["epoch"] <= epochs]
        return min(rows, key=monitor.cost)


class Job(NamedTuple):
    """What to train next: a try's number, which may be a new one, and the epoch to stop after."""

    number: int
    epochs: int


class Halving(NamedTuple):
    """The rules: rungs are the epochs after which tries are compared, the last being a whole training's."""

    rungs: list[int]
    monitor: Monitor
    most: int | None = None  # tries; None: as many as time allows

    def next_job(self, tries: Sequence[Try], busy: set[int], seconds_left: float) -> Job | None:
        """Return the job that comes next; None where none fits into the time that is left.

        Try 0 is trained to its end first, so that nothing is chosen that validation does not find better than the
        params as they are. A job fits where the same try could then still be trained to its end. Where no other does,
        the one that is ahead is; without any whole training this is done whatever the time.

        Args:
            tries: all that have been started.
            busy: numbers of those that another process trains.
            seconds_left: of the budget.
        """
        free = [each for each in tries if each.number not in busy]
        whole = self.rungs[-1]

        def fits(each: Try | None, epochs: int) -> bool:
            afterwards = cost(tries, each, epochs, whole) if epochs < whole else 0.0
            return cost(tries, each, each.epochs if each else 0, epochs) + afterwards <= seconds_left

        for each, epochs in self._candidates(tries, free):
            if fits(each, epochs):
                return Job(len(tries) if each is None else each.number, epochs)
        ahead = self._ahead([each for each in free if not each.has_reached(whole)])
        if ahead is not None and (fits(ahead, whole) or not (busy or any(each.over for each in tries))):
            return Job(ahead.number, whole)
        return None

    def _candidates(self, tries: Sequence[Try], free: Sequence[Try]) -> Iterator[tuple[Try | None, int]]:
        """Yield what the halving would train, the most urgent first: a try, None being a new one, and its epochs."""
        for each in free:
            if each.number == 0 and not each.has_reached(self.rungs[-1]):
                yield each, self.rungs[-1]
        for each in free:
            if not each.has_reached(goal := max(each.goal, self.rungs[0])):
                yield each, goal  # it was interrupted
        for rung, following in reversed(list(pairwise(self.rungs))):
            arrived = sorted((one for one in tries if one.has_reached(rung)), key=lambda one: self._rank(one, rung))
            for each in arrived[: len(arrived) // KEPT]:
                if each in free and not each.has_reached(following):
                    yield each, following
        if self.most is None or len(tries) < self.most:
            yield None, self.rungs[0]

    def winner(self, tries: Sequence[Try]) -> Try | None:
        """Return the best of the tries that were trained to their end, None where there is none."""
        ended = [each for each in tries if each.over and not each.failed]
        return min(ended, key=lambda each: self._rank(each, self.rungs[-1]), default=None)

    def _rank(self, each: Try, rung: int) -> float:
        return math.inf if each.failed else self.monitor.cost(each.best(self.monitor, rung))

    def _ahead(self, unfinished: Sequence[Try]) -> Try | None:
        """Return the best on the highest rung that any of them has reached."""
        for rung in reversed([1, *self.rungs]):
            if arrived := [each for each in unfinished if each.epochs >= rung]:
                return min(arrived, key=lambda each: self._rank(each, rung))
        return None


def cost(tries: Sequence[Try], each: Try | None, done: int, epochs: int) -> float:
    """Estimate the seconds of training a try, None being a new one, from one epoch to another.

    An epoch takes what this try's took, or the mean of all; and whatever was spent outside of epochs is a start's.
    """
    measured = [each] if each is not None and each.epochs else tries
    trained = sum(one.epochs for one in measured)
    starts = sum(one.trainings for one in tries)
    epoch = sum(one.epoch_seconds for one in measured) / max(trained, 1)
    start = sum(one.seconds - one.epoch_seconds for one in tries) / max(starts, 1)
    return start + (epochs - done) * epoch


def rungs_of(epochs: int, warmup: float) -> list[int]:
    """Return the rungs of a training: a ninth of it, a third and all, none before the warm-up is over."""
    first = min(epochs, math.ceil(warmup) + 1)
    return sorted({max(first, -(-epochs // KEPT**power)) for power in range(3)})


def epochs_that_fit(epochs: int, epoch_seconds: float, start_seconds: float, seconds_left: float) -> int:
    """Return how many epochs, at most ``epochs``, a whole training may have to fit into the time; 0 where none does."""
    return max(0, min(epochs, int((seconds_left - start_seconds) / epoch_seconds)))
