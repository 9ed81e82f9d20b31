"""How a stage runs as a program: its command, its parameters, the lock of the project's folder."""

import ctypes
import gc
import importlib
import inspect
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core.command import SETTINGS, Command, log_to_stdout, params_option, quick_exit
from headstart.core.lock import locked
from headstart.core.paths import LOCK, cache_folder
from headstart.core.run_state import UNDER_LOCK, rank_of_process


def main(run: Callable[[Params], None], declared: Sequence[str]) -> None:
    """Run a stage as ``python -m headstart.stages.STAGE``, as slurm/launch.sh of older projects calls it.

    Args:
        run: the stage; it sees only the params that it declares, and ``run``.
        declared: the keys of ``params.yaml`` that the stage uses, as ``dvc.yaml`` lists them.
    """
    module = inspect.getmodule(run)

    @click.command(cls=Command, context_settings=SETTINGS, help=module and module.__doc__)
    @params_option
    def stage(params: Path) -> None:
        run_stage(run, declared, params)

    with quick_exit():
        stage(prog_name=f"headstart {Path(sys.argv[0]).stem}")


def import_stage(name: str) -> Any:
    """Import a stage's module without the garbage collector: of half a million new objects it finds nothing to free."""
    gc.disable()
    try:
        return importlib.import_module(f"headstart.stages.{name}")
    finally:
        gc.enable()


def run_stage(run: Callable[[Params], None], declared: Sequence[str], params_file: Path) -> None:
    """Run a stage in this process, alone in the project's folder.

    Raises:
        UserError: the parameters are wrong, another process runs a stage here, or the stage raised it.
    """
    log_to_stdout()
    keep_memory()
    params = load_params(params_file).declared(declared)
    with _alone_in_folder():
        try:
            run(params)
        except (BrokenPipeError, EOFError) as error:
            # Click would take them for the end of whoever reads stdout or types on stdin, and hide the traceback.
            raise RuntimeError("a process or a file that this stage uses ended too early") from error
        except OSError as error:
            path, cache = Path(error.filename or os.devnull).absolute(), cache_folder(params.run.cache).absolute()
            if path.is_relative_to(cache) or cache.is_relative_to(path):  # a folder above it may be what can't be made
                error.add_note("run.cache can be another folder")
            raise


def _alone_in_folder() -> AbstractContextManager[None]:
    """Lock the project's folder for a stage, unless this is not rank 0 or `headstart repro`, which started it, has.

    DVC's own lock knows processes of one machine only: a `dvc repro` on a login node would write into a job's outputs.
    """
    if rank_of_process() or UNDER_LOCK in os.environ:
        return nullcontext()
    return locked(LOCK, "the pipeline of this folder already runs")


def keep_memory() -> None:
    """Stop glibc from returning freed memory: to get a large tensor's pages anew costs up to half of a step.

    As MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=-1 would; a user's own MALLOC_ variables win.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        trim_threshold, mmap_max = -1, -4  # of mallopt(3)
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)
