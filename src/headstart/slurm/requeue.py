"""Requeues a Slurm job as long as its starts make progress."""

import hashlib
import subprocess
from pathlib import Path

from headstart.config.loader import load_params
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.core.paths import PREPARED, REQUEUES, cache_folder

MAX_STARTS_WITHOUT_PROGRESS = 3


def requeue(job: str, steps: int | None) -> None:
    """Requeue the Slurm job that this process runs in; ``steps`` are in the saved checkpoint, None without a training.

    Raises:
        UserError: the last starts made no progress, or Slurm refuses.
    """
    current = {"job": job, "progress": _progress(steps)}
    previous = read_json(REQUEUES) if REQUEUES.exists() else {"count": 0}
    count = previous["count"] if current.items() <= previous.items() else 0
    if count == MAX_STARTS_WITHOUT_PROGRESS:
        what = f"its last {count} starts made no progress; repair what stops it, then sbatch again"
        raise UserError(f"job {job} is not queued again: {what}")
    write_json(REQUEUES, {**current, "count": count + 1})
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        what = "submit it again, best with #SBATCH --requeue; it resumes where it stopped"
        raise UserError(f"job {job} is not queued again ({reason}): {what}") from error


def _progress(steps: int | None) -> str:
    """Hash what any stage's progress changes: finished stages, optimiser steps, packed images, cached features."""
    lock = Path("dvc.lock")
    digest = hashlib.sha256(lock.read_bytes() if lock.exists() else b"")
    digest.update(str(steps).encode())
    packed = [path for folder in PREPARED.parent.glob(f"*{PREPARED.name}*") for path in folder.rglob("*")]
    cached = (cache_folder(load_params(Path("params.yaml")).run.cache) / "features").glob("*/*.safetensors")
    digest.update(str(sorted((str(path), path.stat().st_size) for path in [*packed, *cached])).encode())
    return digest.hexdigest()
