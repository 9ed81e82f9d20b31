"""Tasks that the processes of a stage share: each takes the next that nobody has begun, so that fast ones do more.

A task is claimed by creating a file of its number in a folder that all can reach: of several processes that try, the
file system lets one succeed.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headstart.core.paths import CLAIMS
from headstart.distributed.process_group import ProcessGroup


def claim_tasks(count: int, process_group: ProcessGroup) -> Iterator[int]:
    """Yield numbers below ``count`` that no other rank gets: of the rank's own part, then any that nobody has begun.

    All ranks have to begin, and end, with one set of tasks at a time.
    """
    if process_group.world == 1:
        yield from range(count)
        return
    folder = process_group.broadcast_from_rank_zero(_new_folder)
    first, end = (count * rank // process_group.world for rank in (process_group.rank, process_group.rank + 1))
    for task in range(first, end):
        if _claim(folder, task):
            yield task
    # In random order, since ranks that are done at the same time would want the same ones.
    generator = np.random.default_rng(process_group.rank)
    lost: set[int] = set()  # those that another rank was quicker to claim; a file server may list them late
    while left := sorted(set(range(count)) - lost - _claimed(folder)):
        for task in generator.permutation(left).tolist():
            if not _claim(folder, task):
                lost.add(task)
                break  # others have taken more since the folder was listed
            yield task


def _new_folder() -> Path:
    """Make an empty folder, under a name that no machine can have seen and cached, and remove those of earlier sets."""
    CLAIMS.mkdir(parents=True, exist_ok=True)
    for folder in CLAIMS.iterdir():
        shutil.rmtree(folder)
    folder = CLAIMS / uuid.uuid4().hex
    folder.mkdir()
    return folder


def _claimed(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}


def _claim(folder: Path, task: int) -> bool:
    try:
        (folder / str(task)).open("x").close()
    except FileExistsError:
        return False
    return True
