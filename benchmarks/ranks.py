"""Measure what the number of processes, and stopping in between, change in a fine-tuning.

    python -m benchmarks.ranks

67 training and 21 validation images of scikit-learn's digits, in batches of 10: sizes that nothing divides. The bundled
backbone starts with the probe's head, with λ = 0.1, BatchNorm frozen, in float32, for one epoch, unless a row says
otherwise; a process has one thread. Then each target, with each loss and sampling. Each figure is the largest
difference, after the last epoch for weights and statistics, relative to the largest of the tensor, and in any epoch for
the others, relative to themselves. Ranks are forked from one process that has imported everything, with torchrun's
variables.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_digits
from torch.multiprocessing.spawn import start_processes

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.stages import features, finetune, prepare, probe
from headstart.targets.kinds import KINDS
from headstart.training.module import FineTuner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.images import write_prepared, write_zero_head

PARAMS = Path(__file__).parents[1] / "params.yaml"
IMAGES = {"train": 67, "val": 21, "test": 13}
PRECISE = "64-true"
"""Lightning's float64, which ``params.yaml`` does not offer."""
THREE: dict[str, Any] = {"finetune.epochs": 3}
FLOAT64: dict[str, Any] = {"finetune.precision": PRECISE}
ADAMW: dict[str, Any] = {"finetune.optimizer": "adamw"}
SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD, float64": FLOAT64,
    "SGD, `accumulate: 2`": {"finetune.accumulate": 2},
    "SGD, `mixup: 0.4`, `cutmix: 1.0`": {"finetune.augment.mixup": 0.4, "finetune.augment.cutmix": 1.0},
    "SGD, `clip: 1.0`, the penalty in the loss": {"finetune.clip": 1.0},
    "AdamW": ADAMW,
    "AdamW, float64": {**ADAMW, **FLOAT64},
    "SGD, three epochs": THREE,
    "SGD, three epochs, float64": {**THREE, **FLOAT64},
    "SGD, three epochs, SiLU in place of ReLU": {**THREE, "backbone.args": {"act_layer": "silu"}},
    "SGD, `bf16-mixed`": {"finetune.precision": "bf16-mixed"},
    "SGD, `batch_norm: train`": {"finetune.batch_norm": "train"},
    "SGD, `drop_rate: 0.2`": {"backbone.drop_rate": 0.2},
}
COLUMNS = ("weights", "train_loss", "val_loss", "val_measures", "ledger")
LOSSES = (*((kind, "auto") for kind in KINDS), ("class", "focal"), ("labels", "asymmetric"), ("number", "quantile"))
SMALL: dict[str, Any] = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "finetune.lr": {"backbone": 0.01, "head": 0.01},
    "finetune.augment.mixup": 0.4,
}
"""For the images of noise that the tests have of each target, from a head of zeros."""


class Stop(NamedTuple):
    """A signal that comes within a step.

    Attributes:
        epoch: from 0.
        step: from 0.
        ranks: those that get it.
    """

    epoch: int
    step: int
    ranks: Sequence[int]


Part = tuple[int, Stop | None]
"""Of a training: the number of processes, and what ends it."""
ALL, FIRST, LAST = Stop(0, 3, range(4)), Stop(1, 0, (0,)), Stop(2, 4, (1,))
STOPPED: dict[str, tuple[int, Sequence[Part]]] = {
    "1 process, stopped three times": (1, [(1, ALL), (1, FIRST), (1, Stop(2, 4, (0,))), (1, None)]),
    "2 processes: all, rank 0, rank 1 get a signal": (2, [(2, ALL), (2, FIRST), (2, LAST), (2, None)]),
    "4 processes: all, rank 0, rank 1 get a signal": (4, [(4, ALL), (4, FIRST), (4, LAST), (4, None)]),
    "4, resumed with 2, then 1": (1, [(4, ALL), (2, LAST), (1, None)]),
    "1, resumed with 2, then 4": (1, [(1, ALL), (2, LAST), (4, None)]),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", action="store_true", help="print the table of all targets alone")
    only_targets = parser.parse_args().targets
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of forks, of what rank 0 alone saves
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        if not only_targets:
            print_digits()
        print_header("2 / 4 processes against 1, by target")
        for kind, loss in LOSSES:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                write_zero_head(write_prepared({"train": 67, "validation": 21, "test": 4}, kind=kind))
                for sampling in ("none", "balanced", "sqrt"):
                    changes = {**SMALL, "finetune.loss": loss, "finetune.sampling": sampling}
                    alone, *others = (trained(changes, [(world, None)]) for world in (1, 2, 4))
                    print_row(f"{kind}, {loss}, {sampling}", [differences(alone, other) for other in others])


def print_digits() -> None:
    """Print the tables of the digits."""
    write_digits(Path("pictures"))
    launch(1, before_finetuning)
    print_header("2 / 4 processes against 1")
    alone: dict[str, dict[str, Any]] = {}
    for name, changes in SETTINGS.items():
        alone[name], *others = (trained(changes, [(world, None)]) for world in (1, 2, 4))
        print_row(name, [differences(alone[name], other) for other in others])
    # A bound that never binds puts the penalty into the loss, and leaves the gradients alone.
    in_loss = [trained({"finetune.clip": 1e6}, [(world, None)]) for world in (2, 4)]
    name = "SGD, the penalty in the loss against 1 process with it in the optimiser"
    print_row(name, [differences(alone["SGD"], each) for each in in_loss])
    print_header("stopped against not stopped: SGD, three epochs")
    for name, (world, parts) in STOPPED.items():
        print_row(name, [differences(trained(THREE, [(world, None)]), trained(THREE, parts))])


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as images: a folder a split, and in it a folder a class."""
    digits = load_digits()
    splits = (split for split, count in IMAGES.items() for _ in range(count))
    for i, split in enumerate(splits):
        target = folder / split / str(digits.target[i]) / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype("uint8")).save(target)


def params_with(changes: Mapping[str, Any]) -> Params:
    """Return the repository's params.yaml for this training, with changes by dotted key."""
    content = YAML(typ="safe").load(PARAMS)
    content["prepare"] |= {"source": "imagefolder", "path": "pictures"}
    content["probe"] |= {"heads": []}
    content["finetune"] |= {
        "epochs": 1,
        "batch_size": 10,
        "optimizer": "sgd",
        "ema": None,
        "lr": {"backbone": 1e-4, "head": 1e-3},
        "l2": {"kind": "l2", "backbone": 0.1, "head": 0.1},
        "warmup_epochs": 0,
        "batch_norm": "frozen",
        "precision": "32-true",
    }
    content["finetune"]["augment"] |= {"hflip": 0.5, "vflip": 0.0, "quarter_turn": 0.0}
    content["run"] |= {"accelerator": "cpu", "workers": 0, "tracking": "disabled"}
    precision = changes.get("finetune.precision")
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = "32-true" if value == PRECISE else value
    params = parse_params(content)
    if precision != PRECISE:
        return params
    return params.model_copy(update={"finetune": params.finetune.model_copy(update={"precision": PRECISE})})


def before_finetuning() -> None:
    """Run the stages that fine-tuning needs."""
    params = params_with({"run.cache": "cache"})
    for stage in (prepare, features, probe):
        stage.run(params.declared(stage.PARAMS))


def trained(changes: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Fine-tune, stopped and resumed as ``parts`` say; return the last checkpoint."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as cache:
        params = params_with({**changes, "run.cache": cache})
        for world, stop in parts:
            launch(world, finetune_until, params, stop)
        (last,) = Path(cache).glob("runs/*/last.ckpt")
        state: dict[str, Any] = torch.load(last, weights_only=True)
    assert len(state["history"]) == params.finetune.epochs
    return state


def finetune_until(params: Params, stop: Stop | None) -> None:
    """Fine-tune as one of the ranks, to the end or to the stop."""
    real = FineTuner.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if stop and (self.current_epoch, batch_idx) == stop[:2] and self.global_rank in stop.ranks:
            signal.raise_signal(signal.SIGUSR1)
        return real(self, batch, batch_idx)

    setattr(FineTuner, "training_step", training_step)  # noqa: B010  (mypy forbids the assignment)
    try:
        finetune.run(params.declared(finetune.PARAMS))
    except SystemExit:
        assert stop
    else:
        assert not stop


def launch(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in so many forked processes at once; raises what one of them raised."""
    arguments = world, free_port(), function, arguments
    start_processes(as_rank, arguments, nprocs=world, start_method="fork")  # type: ignore[no-untyped-call]


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def as_rank(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call a function in a process that looks like one of torchrun's."""
    if world > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in own.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="ranks")
    torch.set_num_threads(1)
    function(*arguments)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """Return the largest difference of each of ``COLUMNS``."""
    weights = expected["state_dict"]
    largest = {"weights": max(_of_tensors(value, found["state_dict"][name]) for name, value in weights.items())}
    losses = "val_loss", "val_refined_loss"
    measures = [name for name in expected["history"][0] if name.startswith("val_") and name not in losses]
    for column, names in zip(COLUMNS[1:4], (COLUMNS[1:2], COLUMNS[2:3], measures), strict=True):
        pairs = zip(expected["history"], found["history"], strict=True)
        largest[column] = max(_of_numbers(a[name], b[name]) for a, b in pairs for name in names)
    pairs = zip(expected["ledger"], found["ledger"], strict=True)
    largest["ledger"] = max(
        _of_numbers(row[name], other[name]) for row, other in pairs for name in row if isinstance(row[name], float)
    )
    return largest


def _of_tensors(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected.double() - found.double()).abs().max() / expected.double().abs().max().clamp(min=1e-300))


def _of_numbers(expected: float, found: float) -> float:
    return abs(expected - found) / max(abs(expected), 1e-300)


def print_header(name: str) -> None:
    """Print a table's head."""
    print(f"\n| {name} | " + " | ".join(COLUMNS).replace("_", " ") + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")


def print_row(name: str, found: Sequence[dict[str, float]]) -> None:
    """Print a row; the figures of several comparisons side by side."""
    cells = [" / ".join(f"{each[column]:.0e}" if each[column] else "0" for each in found) for column in COLUMNS]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
