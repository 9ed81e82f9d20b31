"""Kill a fine-tuning at random moments, go on, and compare the end with that of one that nothing happened to.

    python -m benchmarks.kills --kills 100 --ranks 1 --seed 0
    python -m benchmarks.kills --kills 100 --ranks 4 --seed 0

Each training gets some kills: SIGINT, SIGUSR1 or SIGTERM, to all ranks or to one, once or twice, or SIGKILL to one, after
which the others are ended as srun's --kill-on-bad-exit and torchrun do. Steps take 5 to 200 ms, and saves and validations
are made slow, so that kills come within them too. Counted are those that hung, that ended with another result than the
uninterrupted training (bit for bit), and that lost steps: any for a signal that can be caught, more than the save
interval for SIGKILL. Ranks are forked from one process that has imported everything, with torchrun's variables.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pictures import params, write_prepared

from headstart.assembly import states
from headstart.assembly.classifier import Classifier
from headstart.assembly.state_files import StateFiles, load_state
from headstart.ground.artifacts import FINETUNE, Head, read_table, write_heads
from headstart.ground.workspace import read_stopped
from headstart.stages import finetune

CAUGHT = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
INTERVAL = 0.5
"""Seconds between two saved states."""
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
    real_step, real_validation = Classifier.training_step, Classifier.validation_step
    real_end, real_save = states.States.on_train_batch_end, torch.save

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
        (Classifier, "training_step", training_step),
        (Classifier, "validation_step", validation_step),
        (states.States, "on_train_batch_end", on_train_batch_end),
        (torch, "save", save),
        (states, "LARGEST_SHARE", 1.0),
    ]
    for owner, name, value in patches:
        setattr(owner, name, value)


def start(ranks: int, cache: str, step: float) -> list[int]:
    """Fork the ranks of a training; give their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if ranks > 1:
                    os.environ.update(
                        {
                            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
                            **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
                            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills"},
                        }
                    )
                log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                torch.set_num_threads(1)
                slow_down(step)
                finetune.run(params({**SETTINGS, "run.cache": cache}).declared(finetune.PARAMS))
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def wait(pids: list[int], deadline: float) -> dict[int, int] | None:
    """Wait until all have ended, as a launcher does: where one ends badly, the others are ended too.

    Returns:
        The exit code of each rank (negative for a signal); None where they hang.
    """
    codes: dict[int, int] = {}
    bad_since = None
    while len(codes) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        bad = any(code < 0 for code in codes.values())
        if bad and bad_since is None:
            bad_since = time.time()
            send(pids, codes, signal.SIGTERM)
        if bad_since is not None and time.time() - bad_since > 2:
            send(pids, codes, signal.SIGKILL)
        if time.time() > deadline:
            send(pids, codes, signal.SIGKILL)
            for rank, pid in enumerate(pids):
                if rank not in codes:
                    os.waitpid(pid, 0)
            return None
        time.sleep(0.005)
    return codes


def send(pids: list[int], codes: dict[int, int], number: signal.Signals) -> None:
    """Signal those that have not ended."""
    for rank, pid in enumerate(pids):
        if rank not in codes:
            os.kill(pid, number)


def result() -> str:
    """Name the end of a training: its weights, history and ledger, without times."""
    digest = hashlib.sha256((FINETUNE / "model.safetensors").read_bytes())
    if (FINETUNE / "raw").exists():
        digest.update((FINETUNE / "raw" / "model.safetensors").read_bytes())
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_table(finetune.HISTORY)]
    digest.update(json.dumps([rows, read_table(finetune.LEDGER)]).encode())
    return digest.hexdigest()


def saved_step(cache: str) -> int:
    """Give the step of the newest saved state; 0 where there is none."""
    for name in ("last", "previous"):
        for path in Path(cache).glob(f"runs/*/{name}.ckpt"):
            return int(load_state(path)["global_step"])
    return 0


def lost(cache: str, number: signal.Signals, killed: float, step: float, begun_at: int) -> bool:
    """Say whether more was lost than allowed."""
    noted = [line.split() for line in STEPS.read_text().splitlines()] if STEPS.exists() else []
    steps = {int(count): float(when) for count, when in noted}
    kept, last = saved_step(cache), max(steps, default=begun_at)
    if number in CAUGHT:
        return kept != last
    if kept >= last:
        return False
    oldest_lost = steps[kept + 1]
    # A step, a save and a validation may be under way when the interval is over.
    return killed - oldest_lost > INTERVAL + 2 * SAVE_SECONDS + 12 * step + 1


def main() -> None:
    """Kill, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another setting")
    args = parser.parse_args()
    SETTINGS.update({key: json.loads(value) for key, _, value in (each.partition("=") for each in args.set)})
    generator = random.Random(args.seed)
    os.chdir(tempfile.mkdtemp(prefix="kills-"))
    write_prepared({"train": 67, "validation": 21, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    began = time.time()
    assert wait(start(args.ranks, "whole", 0.0), time.time() + 300) == dict.fromkeys(range(args.ranks), 0), os.getcwd()
    expected, alone = result(), time.time() - began

    counts: Counter[str] = Counter()
    training = 0
    while counts["kills"] < args.kills:
        training += 1
        cache, step = f"training-{training}", generator.choice([0.005, 0.02, 0.05, 0.2])
        longest = alone + 32 * step + 12 * 3 * step / args.ranks
        for _ in range(generator.randint(3, 8)):
            begun_at = saved_step(cache)
            STEPS.unlink(missing_ok=True)
            pids = start(args.ranks, cache, step)
            time.sleep(generator.uniform(0, longest))
            number = generator.choice([*CAUGHT, signal.SIGKILL])
            everyone = number != signal.SIGKILL and generator.random() < 0.5
            chosen = range(args.ranks) if everyone else [generator.randrange(args.ranks)]
            killed, running = time.time(), 0
            for rank in chosen:
                for _ in range(generator.choice([1, 1, 2]) if number != signal.SIGKILL else 1):
                    if os.waitid(os.P_PID, pids[rank], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                        os.kill(pids[rank], number)
                        running += 1
            codes = wait(pids, time.time() + PATIENCE)
            if codes is None:
                counts["hung"] += 1
                print(f"training {training}: hung after {number.name} to {list(chosen)}, steps of {step} s")
                continue
            if not running:
                break
            counts["kills"] += 1
            counts[number.name] += 1
            before_handlers = any(code == -number for code in codes.values())
            if set(codes.values()) != {0} and not (
                before_handlers and number in CAUGHT and saved_step(cache) == begun_at
            ):
                if lost(cache, signal.SIGKILL if before_handlers else number, killed, step, begun_at):
                    counts["lost"] += 1
                    print(f"training {training}: lost after {number.name} to {list(chosen)}: {codes}, {read_stopped()}")
            if set(codes.values()) == {0}:
                break
        else:
            codes = wait(start(args.ranks, cache, 0.0), time.time() + 300)
        if codes is not None and (set(codes.values()) != {0} or result() != expected):
            counts["differed"] += 1
            print(f"training {training}: differed: {codes}, {os.getcwd()}/{cache}")
        counts["trainings"] += 1
    figures = {name: counts[name] for name in ("hung", "differed", "lost")}
    print(f"{counts['kills']} kills in {counts['trainings']} trainings of {args.ranks} rank(s): {figures}")
    print(", ".join(f"{signal_.name} {counts[signal_.name]}" for signal_ in (*CAUGHT, signal.SIGKILL)))
    sys.exit(1 if any(figures.values()) else 0)


if __name__ == "__main__":
    main()
