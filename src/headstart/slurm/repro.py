"""DVC under the lock of the project's folder, and the Slurm job queued again where needed: `headstart repro`."""

import secrets
import signal
from pathlib import Path

from headstart.config.loader import load_params
from headstart.core.errors import UserError
from headstart.core.lock import locked
from headstart.core.paths import DVC_RWLOCK, LAUNCH_SCRIPT, LOCK, STOPPED
from headstart.core.run_state import read_stopped, slurm_job
from headstart.slurm.doctor.batch_checks import check_line_ends
from headstart.slurm.dvc_lock import remove_stale_rwlock
from headstart.slurm.requeue import requeue
from headstart.slurm.supervisor import run_dvc

QUEUED_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: try again


def repro(arguments: list[str]) -> int:
    """Run `dvc repro` in the working directory, or `dvc exp run` where an argument is ``-S`` or ``--set-param``.

    Returns:
        The exit code: 0 done, 1 failed, 75 queued again, 128 + number: stopped by that signal.

    Raises:
        UserError: this is no project's folder, it is in use, params.yaml is incomplete or wrong, or the job can't be
            queued again.
    """
    if not Path(".dvc").is_dir():
        raise UserError(".dvc does not exist: run this in the project's folder")
    load_params(Path("params.yaml"))  # names every missing key, and the command that adds them; DVC does not
    for finding in check_line_ends(LAUNCH_SCRIPT):
        raise UserError(finding.message)
    with locked(LOCK, "the pipeline of this folder already runs"):
        return _run_pipeline(arguments)


def _run_pipeline(arguments: list[str]) -> int:
    """Run DVC under the folder's lock and return the exit code; raises UserError where the job can't be requeued."""
    if remove_stale_rwlock():
        _print(f"{DVC_RWLOCK} named no DVC that runs here, and is removed")
    previous = read_stopped()
    if previous is not None and previous["reason"] == "lost":  # that start may have been lost before it could print it
        _print(f"the start before this one ended: {previous['message']}")
    STOPPED.unlink(missing_ok=True)
    is_experiment = any(argument.startswith(("-S", "--set-param")) for argument in arguments)
    command, start = ["exp", "run"] if is_experiment else ["repro"], secrets.token_hex(8)
    code, received = run_dvc([*command, *arguments], start)
    if code == 0:
        return 0
    marker = read_stopped(start)
    if marker is not None:
        _print(marker["message"])
    reasons = {signal.Signals(number).name for number in received} | ({marker["reason"]} if marker else set())
    for stop in (signal.SIGTERM, signal.SIGINT):
        if stop.name in reasons or code == -stop:
            return 128 + stop
    if reasons & {"SIGUSR1", "lost"} and (job := slurm_job()):
        requeue(job, marker["progress"] if marker else None)
        _print(f"job {job} is queued again")
        return QUEUED_AGAIN
    return 128 + signal.SIGUSR1 if "SIGUSR1" in reasons else 1


def _print(line: str) -> None:
    print(f"headstart repro: {line}", flush=True)
