"""Run `dvc repro` to its end; in a Slurm job, across as many starts as Slurm needs.

usage: headstart repro [ARGUMENTS OF DVC REPRO]
       headstart repro -S KEY=VALUE [ARGUMENTS OF DVC EXP RUN]

It works in the project's folder, one start at a time. SIGUSR1, SIGTERM and SIGINT are forwarded to the stage that runs,
which saves its progress. After SIGUSR1, which Slurm sends before the time limit, or the loss of a process, the Slurm
job is queued again; never after SIGTERM: that is scancel, or a preemption, after which Slurm itself queues it again.

exit code: 0 done; 1 failed; 75 queued again; 128 + number: stopped by that signal
"""

import secrets
import signal
import sys
from pathlib import Path

from headstart.core.errors import UserError
from headstart.core.lock import locked
from headstart.core.paths import DVC_RWLOCK, LOCK, STOPPED
from headstart.core.run_state import read_stopped, slurm_job
from headstart.slurm.dvc_lock import remove_stale_rwlock
from headstart.slurm.requeue import requeue
from headstart.slurm.supervisor import run_dvc

QUEUED_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: try again


def main() -> None:
    """Run DVC with the program's arguments."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        if not Path(".dvc").is_dir():
            raise UserError(".dvc does not exist: run this in the project's folder")
        with locked(LOCK, "the pipeline of this folder already runs"):
            code = _run(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run DVC under the folder's lock and return the exit code; raises UserError where the job can't be requeued."""
    if remove_stale_rwlock():
        _print(f"{DVC_RWLOCK} named no DVC that runs here, and is removed")
    previous = read_stopped()
    if previous is not None and previous["reason"] == "lost":  # that start may have been lost before it could print it
        _print(f"the start before this one ended: {previous['message']}")
    STOPPED.unlink(missing_ok=True)
    is_experiment = any(argument.startswith(("-S", "--set-param")) for argument in arguments)
    start = secrets.token_hex(8)
    code, received = run_dvc([*(["exp", "run"] if is_experiment else ["repro"]), *arguments], start)
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


if __name__ == "__main__":
    main()
