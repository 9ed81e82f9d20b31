"""What a training loop costs around the step: a model so small that the loop shows, µs a step.

Lightning and the plain loop train on one batch in memory, which stays in the CPU's caches. Headstart's figure has its
data path in it; so has that of bare Lightning on Headstart's data path, and the difference is Headstart's own.
"""

import statistics
from dataclasses import replace

from benchmarks.contestants.headstart import make_project
from benchmarks.epoch import LIMIT
from benchmarks.options import Options
from benchmarks.rounds import ALLOCATOR, Contestant, Rates, run_rounds
from headstart.core.text import text_table

BATCH_SIZE = 8
CONTESTANTS = (
    Contestant(LIMIT, "memory", settings={"tuned": True}, environment=ALLOCATOR),
    Contestant("Lightning, bare, in memory", "lightning", "train_in_memory", {"tuned": True}, ALLOCATOR),
    Contestant("Lightning, its template, in memory", "lightning", "train_in_memory", environment=ALLOCATOR),
    Contestant("Lightning, bare, on headstart's data", "headstart", "train_bare_lightning", {"tuned": True}, ALLOCATOR),
    Contestant("headstart, with its data path", "headstart"),
    Contestant("headstart's data path alone", "headstart", "load"),
)


def run(options: Options) -> tuple[str, Rates]:
    """Compare them; return the table and the figures."""
    task = replace(options.task, model="test_resnet", batch_size=BATCH_SIZE)
    make_project(task, "prepare", "features", "probe")
    rates = run_rounds(CONTESTANTS, task, rounds=options.rounds, peers=options.peers)
    rows = [["", "µs a step", "range"]]
    for name, found in rates.items():
        steps = [1e6 * BATCH_SIZE / rate for rate in found]
        if steps:
            rows.append([name, f"{statistics.median(steps):.0f}", f"{min(steps):.0f} to {max(steps):.0f}"])
    return text_table(rows), rates
