"""Features of a frozen backbone: one pass over the images, against the bare forward pass on tensors in memory."""

from dataclasses import replace

from benchmarks.contestants.headstart import make_project
from benchmarks.epoch import CORES, LIMIT, TUNED
from benchmarks.options import Options
from benchmarks.rounds import ALLOCATOR, Contestant, Rates, run_rounds, table

TIMM = "timm, validate.py's defaults, 4 workers"
CONTESTANTS = (
    Contestant("headstart", "headstart", "infer"),
    Contestant(LIMIT, "memory", "infer", {"tuned": True}, ALLOCATOR),
    Contestant(TIMM, "timm", "infer", {"workers": 4}),
    Contestant(f"timm, channels_last, {CORES} workers", "timm", "infer", TUNED),
)


def run(options: Options) -> tuple[str, Rates]:
    """Compare the contestants; return the table and the rates."""
    task = replace(options.task, epochs=1, precision="32-true")
    make_project(task, "prepare")
    rates = run_rounds(options.chosen(CONTESTANTS), task, rounds=options.rounds, peers=options.peers)
    return table(rates, {"× timm": TIMM, "× limit": LIMIT}), rates
