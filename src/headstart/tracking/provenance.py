"""What a run was made with: versions, machine, git."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "scikit-learn", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Describe software and machine in plain JSON values; ``gpu`` and ``git`` are None where there is none.

    ``git`` has the ``commit``, and whether tracked files other than ``dvc.lock`` are changed (``dirty``).
    """
    return {
        "headstart": version("headstart"),
        "versions": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_state(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git_state() -> dict[str, Any] | None:
    try:
        # DVC writes its lock while a stage runs.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)  # noqa: S607  (the user's git)
    return done.stdout.strip()
