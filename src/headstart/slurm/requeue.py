"""Putting a Slurm job back into the queue, as often as that gets the pipeline on."""

import hashlib
import subprocess
from pathlib import Path

from headstart.config.loader import load_params
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.core.paths import PREPARED, REQUEUES, cache_folder

IN_VAIN = 3
"""Requeues in a row that may get the pipeline no further."""


def requeue(job: str, steps: int | None) -> None:
    """Put the Slurm job that this process runs in back into the queue.

    Args:
        job: its name, as ``slurm_job`` gives it.
        steps: optimiser steps that are saved; None where no training stopped.

    Raises:
        UserError: it came no further the last times, or Slurm refuses.
    """
    now = {"job": job, "progress": _progress(steps)}
    before = read_json(REQUEUES) if REQUEUES.exists() else {"count": 0}
    count = before["count"] if before == {**now, "count": before["count"]} else 0
    if count == IN_VAIN:
        raise UserError(
            f"job {job} is not queued again: it came no further in {IN_VAIN} starts; mend what stops it, then "
            "sbatch again"
        )
    write_json(REQUEUES, {**now, "count": count + 1})
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(
            f"job {job} is not queued again ({said}): submit it anew, best with #SBATCH --requeue; it goes on "
            "where it stopped"
        ) from error


def _progress(steps: int | None) -> str:
    """Hash what changes as any stage gets on: ended stages, optimiser steps, images packed, features cached."""
    lock = Path("dvc.lock")
    digest = hashlib.sha256(lock.read_bytes() if lock.exists() else b"")
    digest.update(str(steps).encode())
    packed = [path for folder in PREPARED.parent.glob(f"*{PREPARED.name}*") for path in folder.rglob("*")]
    cached = (cache_folder(load_params(Path("params.yaml")).run.cache) / "features").glob("*.sqlite")
    digest.update(str(sorted((str(path), path.stat().st_size) for path in [*packed, *cached])).encode())
    return digest.hexdigest()
