"""Run one contestant once, in a process of its own: python -m benchmarks.contestants MODULE FUNCTION TASK_AS_JSON.

The last line of its output is a JSON list, images/s of each epoch. FUNCTION is ``train``, ``infer``, or ``load`` for
its batches alone, which come ready for the model: float32 (n, 3, size, size), normalised, on the device.
"""

import importlib
import json
import sys

import torch

from benchmarks.contestants.plain import timed
from benchmarks.task import Task


def main() -> None:
    """Print the rates."""
    name, function, content = sys.argv[1:]
    module, task = importlib.import_module(f"benchmarks.contestants.{name}"), Task(**json.loads(content))
    if function == "load":
        torch.set_num_threads(1)  # as many as each worker process has
        batches = module.batches(task)

        def drain() -> None:
            seen = sum(len(labels) for _, labels in batches)
            assert seen == task.count, f"{seen} images, not {task.count}"

        rates = timed(task, drain)
    else:
        rates = getattr(module, function)(task)
    print(f"\n{json.dumps(rates)}")


if __name__ == "__main__":
    main()
