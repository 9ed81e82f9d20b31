"""The data path alone: normalized batches on the device, by 0, 1 and 2 worker processes of one thread each.

All have the allocator's settings that Headstart's stages set for themselves.
"""

from benchmarks.contestants.headstart import make_project
from benchmarks.options import Options
from benchmarks.rounds import ALLOCATOR, Contestant, Rates, run_rounds, table

WORKERS = (0, 1, 2)
MODULES = {
    "headstart": "headstart",
    "timm": "timm",
    "torchvision v2": "torchvision",
    "LitData": "litdata",
    "WebDataset": "webdataset",
    "fastai": "fastai",
}
CONTESTANTS = [
    Contestant(f"{name}, {workers} workers", module, "load", {"workers": workers, "tuned": True}, ALLOCATOR)
    for workers in WORKERS
    for name, module in MODULES.items()
]
REFERENCES = {f"× timm, {workers}": f"timm, {workers} workers" for workers in WORKERS}


def run(options: Options) -> tuple[str, Rates]:
    """Compare the contestants; return the table and the rates."""
    make_project(options.task, "prepare")
    rates = run_rounds(options.chosen(CONTESTANTS), options.task, rounds=options.rounds, peers=options.peers)
    return table(rates, REFERENCES), rates
