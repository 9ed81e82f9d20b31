"""Contestants in turn, several rounds, each time in a process of its own: medians, ranges and ratios."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.task import Task
from headstart.core.text import text_table

OURS = ("headstart", "memory")  # run by this interpreter; the others by that of the peers
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # what stages do by mallopt


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    Attributes:
        name: as the table shows it.
        module: of ``benchmarks.contestants``.
        function: of that module, or ``load``.
        settings: changes to the task.
        environment: set for its process.
    """

    name: str
    module: str
    function: str = "train"
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


Rates = dict[str, list[float]]
"""Images/s of each round by contestant's name; a round in which it failed is left out."""


def run_rounds(contestants: Sequence[Contestant], task: Task, *, rounds: int, peers: str) -> Rates:
    """Run them round by round, each round beginning with another; say each figure on stderr."""
    rates: Rates = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            epochs = run_once(contestant, task, peers)
            if epochs:
                counted = epochs[1:] or epochs
                rates[contestant.name].append(statistics.harmonic_mean(counted))
                print(f"round {number + 1}  {contestant.name}  {rates[contestant.name][-1]:.1f}/s", file=sys.stderr)
    return rates


def run_once(contestant: Contestant, task: Task, peers: str) -> list[float]:
    """Return images/s of each epoch; none, and the reason on stderr, where it fails."""
    python = sys.executable if contestant.module in OURS else peers
    content = json.dumps(asdict(replace(task, **contestant.settings)))
    done = subprocess.run(
        [python, "-m", "benchmarks.contestants", contestant.module, contestant.function, content],
        cwd=ROOT,
        env=os.environ | contestant.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{contestant.name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return []
    rates: list[float] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return rates


def table(rates: Rates, references: Mapping[str, str]) -> str:
    """Show median, range and the ratio of medians to each reference.

    Args:
        rates: what ``run_rounds`` gave.
        references: the heading of a column of ratios, and the contestant whose median is its 1.
    """
    medians = {name: statistics.median(found) for name, found in rates.items() if found}
    rows = [["", "images/s", "range", *references]]
    for name, found in rates.items():
        if not found:
            rows.append([name, "failed", "", *("" for _ in references)])
            continue
        ratios = [f"{medians[name] / medians[one]:.2f}" if one in medians else "" for one in references.values()]
        rows.append([name, f"{medians[name]:.1f}", f"{min(found):.1f} to {max(found):.1f}", *ratios])
    return text_table(rows)
