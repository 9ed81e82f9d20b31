"""A training epoch as users run it, against the bare step on tensors in memory.

The first epoch is a warm-up; the others are timed whole, validation left out.
"""

import os

from benchmarks.contestants.headstart import make_project
from benchmarks.options import Options
from benchmarks.rounds import ALLOCATOR, Contestant, Rates, run_rounds, table

CORES = os.cpu_count() or 1
TUNED = {"tuned": True, "workers": CORES}
TIMM, LIMIT = "timm, train.py's defaults, 4 workers", "limit: the bare step"
REFERENCES = {"× timm": TIMM, "× limit": LIMIT}
CONTESTANTS = (
    Contestant("headstart", "headstart"),
    Contestant(LIMIT, "memory", settings={"tuned": True}, environment=ALLOCATOR),
    Contestant("limit without the allocator's settings", "memory", settings={"tuned": True}),
    Contestant(TIMM, "timm", settings={"workers": 4}),
    Contestant(f"timm, channels_last, {CORES} workers", "timm", settings=TUNED),
    Contestant(f"timm, channels_last, {CORES} workers, allocator", "timm", settings=TUNED, environment=ALLOCATOR),
    Contestant("Lightning, its template, 0 workers", "lightning"),
    Contestant(f"Lightning, channels_last, v2, {CORES} workers", "lightning", settings=TUNED),
    Contestant("transformers.Trainer, 0 workers", "transformers"),
    Contestant(f"fastai, {CORES} workers", "fastai", settings={"workers": CORES}),
    Contestant(f"plain loop, torchvision v2, {CORES} workers", "torchvision", settings=TUNED),
    Contestant(f"plain loop, LitData, {CORES} workers", "litdata", settings=TUNED),
    Contestant(f"plain loop, LitData, {CORES} workers, allocator", "litdata", settings=TUNED, environment=ALLOCATOR),
    Contestant(f"plain loop, WebDataset, {CORES} workers", "webdataset", settings=TUNED),
)


def run(options: Options) -> tuple[str, Rates]:
    """Compare them; give the table and the figures."""
    make_project(options.task, "prepare", "features", "probe")
    rates = run_rounds(options.chosen(CONTESTANTS), options.task, rounds=options.rounds, peers=options.peers)
    return table(rates, REFERENCES), rates
