"""What every stage's program does around its ``run``: arguments, params, one clear error, the exit code."""

import argparse
import ctypes
import inspect
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.lock import locked
from headstart.core.paths import LOCK
from headstart.core.run_state import UNDER_LOCK, rank_of_process

SECONDS_FOR_RANK_0 = 3


def main(run: Callable[[Params], None], declared: Sequence[str]) -> None:
    """Run a stage as a program: exit code 0 on success, 1 with one message on stderr where the user can mend it.

    Args:
        run: the stage; it sees only the params that it declares, and ``run``.
        declared: the keys of ``params.yaml`` that the stage uses, as ``dvc.yaml`` lists them.
    """
    module = inspect.getmodule(run)
    parser = argparse.ArgumentParser(
        prog=f"headstart {Path(sys.argv[0]).stem}",
        description=module.__doc__ if module else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    for ours in ("headstart", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    _keep_memory()
    try:
        params = load_params(args.params).declared(declared)
        with _alone_in_folder():
            run(params)
    except UserError as error:
        # One that a DataLoader's worker raised comes with the worker's traceback before it.
        sys.exit(f"{_who_speaks()}error: {str(error).rpartition('UserError: ')[2]}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _alone_in_folder() -> AbstractContextManager[None]:
    """Lock the project's folder for a stage, unless this is not rank 0 or `headstart repro`, which started it, has.

    DVC's own lock knows processes of one machine only: a `dvc repro` on a login node would write into a job's outputs.
    """
    if rank_of_process() or UNDER_LOCK in os.environ:
        return nullcontext()
    return locked(LOCK, "the pipeline of this folder already runs")


def _who_speaks() -> str:
    """Let rank 0 speak first: most errors are those of all, and its end ends the others. They then say who they are."""
    if not rank_of_process():
        return ""
    time.sleep(SECONDS_FOR_RANK_0)
    return f"rank {rank_of_process()} on {socket.gethostname()}: "


def _keep_memory() -> None:
    """Let glibc keep what is freed: a large tensor's pages, given back and asked for anew, cost up to half of a step.

    As MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=-1 would; a user's own MALLOC_ variables win.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        trim_threshold, mmap_max = -1, -4  # of mallopt(3)
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)
