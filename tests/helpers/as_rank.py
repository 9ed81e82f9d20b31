"""Runs stages as one of several ranks: python as_rank.py EVENT STAGE..., each where it is, or in a FOLDER/STAGE.

EVENT happens to rank 1 in the second step of the second epoch: signal, kill, raise, or nothing.
"""

import contextlib
import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from headstart.config.loader import load_params
from headstart.distributed import heartbeat
from headstart.stages import probe
from headstart.training.module import FineTuner

SIGNALS = {"signal": signal.SIGUSR1, "kill": signal.SIGKILL}


def main() -> None:
    event, *names = sys.argv[1:]
    real = FineTuner.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if (self.global_rank, self.current_epoch, batch_idx) == (1, 1, 1):
            if event == "raise":
                raise RuntimeError("out of luck")
            if event in SIGNALS:
                os.kill(os.getpid(), SIGNALS[event])
        return real(self, batch, batch_idx)

    setattr(FineTuner, "training_step", training_step)  # noqa: B010  (mypy forbids the assignment)
    heartbeat.PERIOD = 0.2
    probe.WORTH_TORCH = 1  # so that the ranks share it
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("headstart").setLevel(logging.INFO)
    for path in map(Path, names):
        stage = importlib.import_module(f"headstart.stages.{path.name}")
        with contextlib.chdir(path.parent):
            stage.run(load_params(Path("params.yaml")).declared(stage.PARAMS))


if __name__ == "__main__":
    main()
