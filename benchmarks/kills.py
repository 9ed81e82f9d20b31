"""Kill a fine-tuning at random moments, resume it, and compare its end with that of an undisturbed one.

    python -m benchmarks.kills --kills 100 --ranks 1 --seed 10
    python -m benchmarks.kills --kills 100 --ranks 4 --seed 11
    python -m benchmarks.kills --kills 20 --ranks 2 --target number --set 'finetune.loss="quantile"' \
        --set 'finetune.sampling="balanced"'

Each training gets some kills: SIGINT, SIGUSR1 or SIGTERM, to all ranks or to one, once or twice, or SIGKILL to one,
after which the others are ended as srun's --kill-on-bad-exit and torchrun do. Steps take 5 to 200 ms, and saves and
validations are made slow, so that kills come within them too. Counted are those that hung, that ended with another
result than the uninterrupted training (bit for bit), and that lost steps: any for a signal that can be caught, more
than the save interval for SIGKILL. Ranks are forked from one process that has imported everything.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks import as_rank, free_port
from headstart.core import paths
from headstart.core.io import read_table
from headstart.core.paths import FINETUNE
from headstart.stages import finetune
from headstart.targets.kinds import KINDS
from headstart.training import checkpoint
from headstart.training.checkpoint import load_checkpoint
from headstart.training.module import FineTuner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.images import params, write_prepared, write_zero_head

FORK = get_context("fork")
SECONDS_TO_TERMINATE = 2
CAUGHT = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
INTERVAL = 0.5
"""Seconds between two checkpoints."""
PATIENCE = 90
"""Seconds after a signal after which a training counts as hung."""
SAVE_SECONDS = 0.05
"""By which a save is made slower, in its middle."""
SETTINGS: dict[str, Any] = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.drop_rate": 0.2,
    "finetune.epochs": 4,
    "finetune.batch_size": 8,
    "finetune.optimizer": "sgd",
    "finetune.ema": 0.9,
    "finetune.clip": 1.0,
    "finetune.lr": {"backbone": 0.05, "head": 0.05},
    "finetune.augment.hflip": 0.5,
    "finetune.early_stopping": {"monitor": "val_loss", "patience": 2, "min_delta": 0.0},
    "run.save_minutes": INTERVAL / 60,
    "run.timeout_minutes": 1,
}
STEPS = Path("steps.txt")


def slow_down(step: float) -> None:
    """Make steps, validations and saves slow, and have rank 0 note each step with its time."""
    real_step, real_validation = FineTuner.training_step, FineTuner.validation_step
    real_end, real_save = checkpoint.CheckpointManager.on_train_batch_end, torch.save

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        time.sleep(step)
        return real_step(self, batch, batch_idx)

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(step)
        real_validation(self, batch, batch_idx)

    def on_train_batch_end(self: Any, trainer: Any, *others: Any) -> None:
        if trainer.is_global_zero:
            with STEPS.open("a") as file:
                file.write(f"{trainer.global_step} {time.time()}\n")
        real_end(self, trainer, *others)

    def save(state: Any, file: Any) -> None:
        file.write(b"")
        time.sleep(SAVE_SECONDS)
        real_save(state, file)
        time.sleep(SAVE_SECONDS)

    patches: list[tuple[Any, str, Any]] = [
        (FineTuner, "training_step", training_step),
        (FineTuner, "validation_step", validation_step),
        (checkpoint.CheckpointManager, "on_train_batch_end", on_train_batch_end),
        (torch, "save", save),
        (checkpoint, "LARGEST_FRACTION", 1.0),
    ]
    for owner, name, value in patches:
        setattr(owner, name, value)


def fine_tune(cache: str, step: float) -> None:
    """Fine-tune as one of the ranks, slowed down, with its output in a file."""
    log = os.open(f"log-{os.environ.get('RANK', '0')}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    slow_down(step)
    finetune.run(params({**SETTINGS, "run.cache": cache}).declared(finetune.PARAMS))


def start(ranks: int, cache: str, step: float) -> list[ForkProcess]:
    """Fork the ranks of a training."""
    port = free_port()
    processes = [FORK.Process(target=as_rank, args=(i, ranks, port, fine_tune, (cache, step))) for i in range(ranks)]
    for process in processes:
        process.start()
    return processes


def wait(processes: list[ForkProcess], seconds: float) -> list[int | None]:
    """Wait until all have ended, as a launcher does: where one dies, the others are terminated, then killed.

    Returns:
        The exit code of each rank, negative for a signal; None for one that hung, which is killed.
    """
    began, died = time.monotonic(), math.inf
    while any(process.is_alive() for process in processes):
        now = time.monotonic()
        if now - began > seconds:
            hung = [process.is_alive() for process in processes]
            for process in processes:
                process.kill()
            return [None if each else process.exitcode for each, process in zip(hung, processes, strict=True)]
        if math.isinf(died) and any((process.exitcode or 0) < 0 for process in processes):
            died = now
            for process in processes:
                process.terminate()
        if now - died > SECONDS_TO_TERMINATE:
            for process in processes:
                process.kill()
        time.sleep(0.005)
    return [process.exitcode for process in processes]


def result() -> str:
    """Name the end of a training: its weights, history and ledger, without times."""
    digest = hashlib.sha256((FINETUNE / "model.safetensors").read_bytes())
    if (FINETUNE / "raw").exists():
        digest.update((FINETUNE / "raw" / "model.safetensors").read_bytes())
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_table(paths.HISTORY)]
    digest.update(json.dumps([rows, read_table(paths.LEDGER)]).encode())
    return digest.hexdigest()


def saved_step(cache: str) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    for name in ("last", "previous"):
        for path in Path(cache).glob(f"runs/*/{name}.ckpt"):
            return int(load_checkpoint(path)["global_step"])
    return 0


class Training:
    """One fine-tuning, which is killed and started again until it ends."""

    def __init__(self, ranks: int, cache: str, generator: random.Random, counts: Counter[str]) -> None:
        """Choose how slow it is."""
        self._ranks, self._cache, self._generator, self._counts = ranks, cache, generator, counts
        self._step = generator.choice([0.005, 0.02, 0.05, 0.2])

    def run(self, undisturbed: float, expected: str) -> None:
        """Kill it some times, then let it end; count what went wrong.

        Args:
            undisturbed: seconds of a training that is not slowed down.
            expected: its ``result``.
        """
        longest = undisturbed + 32 * self._step + 12 * 3 * self._step / self._ranks
        for _ in range(self._generator.randint(3, 8)):
            codes = self._killed(self._generator.uniform(0, longest))
            if set(codes) == {0}:
                break
        else:
            codes = wait(start(self._ranks, self._cache, 0.0), 300)
        if set(codes) != {0} or result() != expected:
            self._say("differed", f"ends with {codes}")
        self._counts["trainings"] += 1

    def _killed(self, after: float) -> list[int | None]:
        """Start it, kill it after some seconds, and return the exit codes."""
        begun_at = saved_step(self._cache)
        STEPS.unlink(missing_ok=True)
        processes = start(self._ranks, self._cache, self._step)
        time.sleep(after)
        number = self._generator.choice([*CAUGHT, signal.SIGKILL])
        everyone = number != signal.SIGKILL and self._generator.random() < 0.5
        chosen = processes if everyone else [self._generator.choice(processes)]
        when, alive = time.time(), [process for process in chosen if process.is_alive()]
        for process in alive:
            for _ in range(self._generator.choice([1, 1, 2])):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, number)
        codes = wait(processes, PATIENCE)
        if alive:
            self._counts.update(["kills", number.name])
        what = f"{number.name} after {after:.2f} s to {len(chosen)} of {self._ranks}, steps of {self._step} s: {codes}"
        if None in codes:
            self._say("hung", what)
        elif set(codes) != {0} and self._lost(number, when, begun_at, codes):
            self._say("lost", what)
        return codes

    def _lost(self, number: signal.Signals, when: float, begun_at: int, codes: list[int | None]) -> bool:
        """Return whether more was lost than allowed."""
        noted = [line.split() for line in STEPS.read_text().splitlines()] if STEPS.exists() else []
        steps = {int(count): float(time) for count, time in noted}
        kept, last = saved_step(self._cache), max(steps, default=begun_at)
        if kept >= last:
            return False
        if number in CAUGHT and -number not in codes:
            return True
        # Killed, or before the handlers were there. A step, a save, a validation may be under way after the interval.
        return when - steps[kept + 1] > INTERVAL + 2 * SAVE_SECONDS + 12 * self._step + 1

    def _say(self, wrong: str, what: str) -> None:
        self._counts[wrong] += 1
        print(f"{Path.cwd() / self._cache}: {wrong}: {what}", flush=True)


def main() -> None:
    """Kill, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=KINDS, default="class")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another setting")
    args = parser.parse_args()
    SETTINGS.update({key: json.loads(value) for key, _, value in (each.partition("=") for each in args.set)})
    os.chdir(tempfile.mkdtemp(prefix="kills-"))
    write_zero_head(write_prepared({"train": 67, "validation": 21, "test": 4}, kind=args.target))
    began = time.monotonic()
    codes = wait(start(args.ranks, "whole", 0.0), 300)
    assert set(codes) == {0}, Path.cwd()
    undisturbed, expected = time.monotonic() - began, result()

    generator, counts = random.Random(args.seed), Counter[str]()  # noqa: S311  (nothing secret)
    while counts["kills"] < args.kills:
        Training(args.ranks, f"training-{counts['trainings']}", generator, counts).run(undisturbed, expected)
    names = [number.name for number in (*CAUGHT, signal.SIGKILL)]
    print(f"{counts['kills']} kills of {counts['trainings']} trainings on {args.ranks} ranks: ", end="")
    print(", ".join(f"{counts[name]} {name}" for name in (*names, "hung", "differed", "lost")))
    sys.exit(any(counts[name] for name in ("hung", "differed", "lost")))


if __name__ == "__main__":
    main()
