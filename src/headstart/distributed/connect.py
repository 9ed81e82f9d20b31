"""The start of a stage that several processes may share."""

import os
from datetime import timedelta

import torch

from headstart.config.schema import RunConfig
from headstart.distributed.process_group import ProcessGroup, device_of, use_cores


def connect(run: RunConfig, timeout: timedelta | None = None) -> ProcessGroup:
    """Start the processes that no launcher has started, connect all, and divide this machine's cores among its own.

    ``timeout`` is how long a process waits for the others in a call between them; None: a little longer than
    ``run.timeout_minutes``.

    Raises UserError as ``launch.layout`` does, and RuntimeError where not all connected within ``run.timeout_minutes``.
    """
    launched = {"TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"} & os.environ.keys()
    alone = run.devices == 1 or (run.devices == "auto" and torch.cuda.device_count() < 2)
    if launched or not alone:
        from headstart.distributed.launch import launch, layout  # noqa: PLC0415  (Lightning: more than a second)

        processes = layout(run)
        if processes.world > 1:
            return launch(processes, run.timeout_minutes, timeout)
    use_cores(1)
    return ProcessGroup(device=device_of(run))
