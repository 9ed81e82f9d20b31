"""Measure what it costs to be able to resume: the checkpoints, and what the ranks exchange at each step.

    python -m benchmarks.saving

Checkpoints of the bundled backbone and of a ResNet-50 within an epoch, where they hold most, and what fraction a save
takes of the interval, ``run.save_minutes`` of params.yaml. Then 2 processes of one thread each, with a model so small
that the exchange shows: epochs with and without it take turns, and both ranks leave the same ones out.
"""

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ranks import before_finetuning, launch, params_with, write_digits
from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.distributed.heartbeat import PERIOD, Watchdog
from headstart.stages import finetune
from headstart.training import checkpoint
from headstart.training.checkpoint import CheckpointManager

SGD = {"finetune.optimizer": "sgd", "finetune.ema": None}
ADAMW = {"finetune.optimizer": "adamw", "finetune.ema": None}
RESNET50 = {"backbone.name": "resnet50", "backbone.pretrained": False, "finetune.recipe": "full"}
SAVED: dict[str, dict[str, Any]] = {
    "bundled, SGD": SGD,
    "bundled, AdamW": ADAMW,
    "resnet50, SGD": {**RESNET50, **SGD},
    "resnet50, AdamW": {**RESNET50, **ADAMW},
}
SMALL: dict[str, Any] = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "finetune.recipe": "full",
    "finetune.batch_size": 2,
    "finetune.epochs": 60,
    "finetune.early_stopping": {"monitor": "val_loss", "patience": 60, "min_delta": 0.0},
}
FIGURES = Path("figures.json")


def main() -> None:
    """Print what was found."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    between = 60 * load_params(Path("params.yaml")).run.save_minutes
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of forks, of what rank 0 alone saves
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        write_digits(Path("pictures"))
        launch(1, before_finetuning)
        print("| checkpoint | MB | seconds | share of the time |\n|---|---|---|---|")
        for name, changes in SAVED.items():
            seconds, size = measured(1, time_saves, {**changes, "run.save_minutes": 1e-9, "run.cache": name})
            print(f"| {name} | {size / 1e6:.0f} | {seconds:.2f} | {seconds / between:.2%} |", flush=True)
        plain, agreeing, call, sign = measured(2, time_exchange, {**SMALL, "run.cache": "exchange"})
    print(f"\na step without the exchange {1e3 * plain:.2f} ms, with it {agreeing / plain:.3f} times that")
    print(f"the call takes {1e6 * call:.0f} µs; the watchdog's sign of life {1e3 * sign:.2f} ms every {PERIOD:.0f} s")


def measured(world: int, function: Any, changes: Mapping[str, Any]) -> list[float]:
    """Fine-tune in forked processes under a function that writes figures; return them."""
    launch(world, function, params_with(changes))
    figures: list[float] = json.loads(FIGURES.read_text())
    return figures


def time_saves(params: Params) -> None:
    """Fine-tune, saving after every step; write the median seconds of a save, and the largest checkpoint's bytes."""
    sizes, real = [], CheckpointManager._save  # noqa: SLF001  (all that a training waits for)
    seconds = []

    def save(*arguments: Any, **options: Any) -> OSError | None:
        began = time.perf_counter()
        failure = real(*arguments, **options)
        seconds.append(time.perf_counter() - began)
        sizes.append(next(Path(str(params.run.cache)).glob("runs/*/last.ckpt")).stat().st_size)
        return failure

    setattr(CheckpointManager, "_save", save)  # noqa: B010  (mypy forbids the assignment)
    checkpoint.LARGEST_FRACTION = 1.0
    finetune.run(params.declared(finetune.PARAMS))
    FIGURES.write_text(json.dumps([statistics.median(seconds), max(sizes)]))


def time_exchange(params: Params) -> None:
    """Fine-tune as one of two ranks; leave the medians of a step without and with, of the call, of a sign of life."""
    steps: dict[bool, list[float]] = {False: [], True: []}
    calls, signs, began = list[float](), list[float](), 0.0
    real_end, real_write = CheckpointManager.on_train_batch_end, Watchdog._write  # noqa: SLF001  (timed from outside)

    def on_train_batch_end(self: Any, trainer: Any, *others: Any) -> None:
        nonlocal began
        now, agrees = time.perf_counter(), bool(trainer.current_epoch % 2)
        if others[-1]:  # the first step of an epoch has more before it
            steps[agrees].append(now - began)
        began = now
        if agrees:
            real_end(self, trainer, *others)
            calls.append(time.perf_counter() - now)

    def write(self: Any, **more: str) -> None:
        now = time.perf_counter()
        real_write(self, **more)
        signs.append(time.perf_counter() - now)

    setattr(CheckpointManager, "on_train_batch_end", on_train_batch_end)  # noqa: B010  (mypy forbids the assignment)
    setattr(Watchdog, "_write", write)  # noqa: B010
    finetune.run(params.declared(finetune.PARAMS))
    FIGURES.write_text(json.dumps([statistics.median(each) for each in (steps[False], steps[True], calls, signs)]))


if __name__ == "__main__":
    main()
