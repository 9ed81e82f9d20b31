"""A lock between processes, also of several machines that share a file system; it names its holder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json

LEASE_S = 120
"""Seconds that a requeued job waits for its earlier lock: a file server keeps a dead node's locks for up to 90 s."""


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock ``<path>.lock``, and name its holder in ``<path>.holder.json``.

    A requeued job waits for the lock that its own earlier start left; every other process is refused at once.

    Args:
        path: the two files' path without their suffixes.
        busy: the message for whoever is refused, up to "on HOST as process PID".

    Raises:
        UserError: another process holds the lock; the message names its host and number.
    """
    lock, holder = FileLock(path.with_suffix(".lock")), path.with_suffix(".holder.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID")
    earlier = read_json(holder) if holder.exists() else {"host": "another host", "pid": "unknown"}
    try:
        lock.acquire(timeout=LEASE_S if job and earlier.get("job") == job else 0)
    except Timeout:
        of_job = f" of Slurm job {earlier['job']}" if earlier.get("job") else ""
        raise UserError(
            f"{busy} on {earlier['host']} as process {earlier['pid']}{of_job}: wait for it, or stop it first"
        ) from None
    try:
        write_json(holder, {"host": socket.gethostname(), "pid": os.getpid(), "job": job})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
