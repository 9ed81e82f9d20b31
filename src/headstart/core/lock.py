"""A lock between processes of one machine, or of several that share a file system; it is said who has it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json

LEASE_S = 120
"""A file server keeps the locks of a node that died for up to 90 s."""


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock ``<path>.lock``, with ``<path>.holder.json`` beside it to say who does.

    A requeued job waits for what its own earlier start left locked; everybody else is refused at once.

    Args:
        path: a name that no file has.
        busy: what to say of a lock that is held, up to "on HOST as process PID".

    Raises:
        UserError: another process holds it; the message names the process.
    """
    lock, holder = FileLock(path.with_suffix(".lock")), path.with_suffix(".holder.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID")
    who = read_json(holder) if holder.exists() else {"host": "another host", "pid": "unknown"}
    try:
        lock.acquire(timeout=LEASE_S if job and who.get("job") == job else 0)
    except Timeout:
        of_job = f" of Slurm job {who['job']}" if who.get("job") else ""
        raise UserError(
            f"{busy} on {who['host']} as process {who['pid']}{of_job}: wait for it, or stop it first"
        ) from None
    try:
        write_json(holder, {"host": socket.gethostname(), "pid": os.getpid(), "job": job})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
