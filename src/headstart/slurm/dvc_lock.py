"""DVC's own lock file, after a DVC that was killed or that ran on another node left its entry in it.

The file holds bare process ids, which mean nothing on another node of a shared file system: DVC waits for any process
that has such an id. DVC's other lock, ``.dvc/tmp/lock``, belongs to the kernel and ends with its holder.
"""

import itertools
import json
from pathlib import Path

import psutil

from headstart.core.paths import DVC_RWLOCK


def remove_stale_rwlock() -> bool:
    """Remove the file unless it names a DVC process of this machine; return whether it was removed.

    The caller must hold the lock of the project's folder, so that no `headstart repro` and no stage runs on any node.
    A plain `dvc repro` on another node may still be hashing files; it loses its entry, fails, and can be run again.
    """
    try:
        content = json.loads(DVC_RWLOCK.read_text(encoding="utf-8"))
        holders = [*content.get("write", {}).values(), *itertools.chain(*content.get("read", {}).values())]
    except FileNotFoundError:
        return False
    except ValueError:  # truncated by a kill; DVC would refuse to read it
        holders = [{"pid": -1}]
    if not holders or any(_is_dvc(holder["pid"]) for holder in holders):
        return False
    DVC_RWLOCK.unlink()
    return True


def _is_dvc(pid: int) -> bool:
    """Return whether the process runs on this machine and is DVC."""
    try:
        return any(Path(word).name == "dvc" for word in psutil.Process(pid).cmdline())
    except (psutil.Error, ValueError):
        return False
