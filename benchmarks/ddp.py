"""Fine-tuning in 1 process against 2, with the same number of threads in all.

What sharing the cores costs without DDP is in two processes that train apart at the same time, each on its part of a
batch: they wait for nobody.
"""

from benchmarks.contestants.headstart import make_project
from benchmarks.epoch import CORES
from benchmarks.options import Options
from benchmarks.rounds import Contestant, Rates, run_rounds, table

ONE, TWO = f"1 process of {CORES} threads", f"2 processes of {CORES // 2}"
APART = f"{TWO}, apart"
HALF = {"OMP_NUM_THREADS": str(CORES // 2)}
CONTESTANTS = (
    Contestant(ONE, "headstart", environment={"OMP_NUM_THREADS": str(CORES)}),
    Contestant(TWO, "headstart", settings={"processes": 2}, environment=HALF),
    Contestant(APART, "headstart", "train_apart", settings={"processes": 2}, environment=HALF),
)


def run(options: Options) -> tuple[str, Rates]:
    """Compare them; give the table and the figures."""
    make_project(options.task, "prepare", "features", "probe")
    rates = run_rounds(CONTESTANTS, options.task, rounds=options.rounds, peers=options.peers)
    return table(rates, {"× 1 process": ONE, "× apart": APART}), rates
