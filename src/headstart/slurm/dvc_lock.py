"""DVC's own lock file, where a killed DVC or one on another node has left its name in it.

It holds bare process ids, which mean nothing on another node of a shared file system: DVC takes any process that has
such an id for the one that it waits for. DVC's other lock, ``.dvc/tmp/lock``, is the kernel's and ends with its holder.
"""

import itertools
import json
from pathlib import Path

import psutil

from headstart.core.paths import DVC_RWLOCK


def remove_stale_rwlock() -> bool:
    """Remove the file unless a DVC of this machine is named in it; say whether it was removed.

    To be called by who holds the lock of the project's folder: then no `headstart repro` and no stage runs on any node.
    A plain `dvc repro` on another one may still hash files; it loses its name, fails, and can be run again.
    """
    try:
        content = json.loads(DVC_RWLOCK.read_text(encoding="utf-8"))
        holders = [*content.get("write", {}).values(), *itertools.chain(*content.get("read", {}).values())]
    except FileNotFoundError:
        return False
    except ValueError:
        # Cut off by a kill; DVC would refuse to read it.
        holders = [{"pid": -1}]
    if not holders or any(_is_dvc(holder["pid"]) for holder in holders):
        return False
    DVC_RWLOCK.unlink()
    return True


def _is_dvc(pid: int) -> bool:
    """Say whether the process lives here, and runs DVC."""
    try:
        return any(Path(word).name == "dvc" for word in psutil.Process(pid).cmdline())
    except (psutil.Error, ValueError):
        return False
