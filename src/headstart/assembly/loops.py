"""Where in an epoch a state goes on, in the numbers by which Lightning's loops find their place.

Lightning (2.6) goes on within an epoch only from where it saved itself, counts batches and not steps, and skips the
validation that a save after the last batch has still before it.
"""

from typing import Any


def place_loops(loops: dict[str, Any], epoch: int, step: int, steps_per_epoch: int, parts: int) -> None:
    """Write the place into a checkpoint's ``loops``.

    Args:
        loops: changed in place.
        epoch: from 0.
        step: optimiser steps taken in it, from 1 to ``steps_per_epoch``; after the last the validation is to be done.
        steps_per_epoch: optimiser steps.
        parts: batches a step, which may be others than when the state was saved.
    """
    fit = loops["fit_loop"]
    batches, before = step * parts, epoch * steps_per_epoch * parts
    whole = step == steps_per_epoch
    # Within an epoch Lightning expects a batch that is not quite completed: it saves at the end of one.
    done = batches if whole else batches - 1
    current = {"ready": batches, "started": batches, "processed": batches, "completed": done}
    total = {name: before + count for name, count in current.items()}
    fit["epoch_loop.batch_progress"] = {"total": total, "current": current, "is_last_batch": whole}
    if whole:
        # A validation that has begun with its first batch is gone on with, and begins with its first batch.
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        fit["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": {**begun}, "is_last_batch": False}
