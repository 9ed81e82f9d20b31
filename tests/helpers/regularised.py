"""The product's training against the regulariser written out by hand, for every kind and optimiser.

`python tests/regularised.py` prints the table: where each kind acts, and the largest difference of the weights.
"""

import itertools
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.targets.classes import Classes
from headstart.targets.target import Target
from headstart.training.datamodule import Batch
from headstart.training.losses import warmup_cosine
from headstart.training.module import FineTuner
from headstart.training.phases import TrainingPlan
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import penalty_location
from helpers.images import params

SIDE, CLASSES, BATCH, STEPS = 4, 3, 12, 10
TARGET: Target = Classes([*"abc"])
CONFIG = {"input_size": [3, SIDE, SIDE], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
OPTIMIZERS = {
    "sgd": ("sgd", 0.0, False),
    "sgd, momentum": ("sgd", 0.9, False),
    "sgd, Nesterov": ("sgd", 0.9, True),
    "adam": ("adam", 0.9, False),
    "adamw": ("adamw", 0.9, False),
}
KINDS = ("l2", "l2_sp", "decoupled", "none")
STRENGTH = {"backbone": 0.02, "head": 0.05}
"""λ, or the decoupled decay, of each group: large enough that a wrong factor is seen at once."""


@dataclass(frozen=True)
class Setting:
    """A cell of the table."""

    kind: str
    optimizer: str
    clip: float | None = None
    accumulate: int = 1
    precision: Any = "64-true"
    ranks: int = 1


class Model(nn.Module):
    """Two layers with a timm model's way of naming its classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer, self.fc = nn.Linear(3 * SIDE * SIDE, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.tanh(self.layer(inputs.flatten(1))))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.fc


def settings_of(setting: Setting) -> Any:
    name, momentum, nesterov = OPTIMIZERS[setting.optimizer]
    decoupled = setting.kind == "decoupled"
    return params(
        {
            "finetune.optimizer": name,
            "finetune.momentum": momentum,
            "finetune.nesterov": nesterov,
            "finetune.l2": {"kind": setting.kind, **({} if decoupled else STRENGTH)},
            "finetune.decay": STRENGTH if decoupled else {},
            "finetune.clip": setting.clip,
            "finetune.accumulate": setting.accumulate,
            "finetune.batch_size": BATCH,
            "finetune.epochs": 1,
        }
    ).finetune


def dtype_of(setting: Setting) -> torch.dtype:
    """Of the weights."""
    return torch.float64 if setting.precision == "64-true" else torch.float32


def groups_of(model: Model, kind: str) -> list[Group]:
    """Weights with their strength and biases without, each layer at a rate of its own."""
    groups = []
    for name, layer, lr in (("backbone", "layer", 0.1), ("head", "fc", 0.2)):
        strength = 0.0 if kind == "none" else STRENGTH[name]
        decoupled = kind == "decoupled"
        numbers = (0.0, strength) if decoupled else (strength, 0.0)
        rows = {key: value for key, value in model.named_parameters() if key.startswith(layer)}
        groups.append(Group(name, *numbers, lr, {f"{layer}.weight": rows[f"{layer}.weight"]}))
        groups.append(Group(f"{name}_free", 0.0, 0.0, lr, {f"{layer}.bias": rows[f"{layer}.bias"]}))
    return groups


class Batches(Dataset[Batch]):
    """Parts of global batches, in the order in which one process takes them; every rank takes its share of each."""

    def __init__(self, accumulate: int) -> None:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (STEPS * BATCH, SIDE, SIDE, 3), dtype=np.uint8)
        labels = generator.integers(0, CLASSES, STEPS * BATCH)
        size = BATCH // accumulate
        self.parts = [
            Batch(torch.from_numpy(pixels[i : i + size]), torch.from_numpy(labels[i : i + size]))
            for i in range(0, len(labels), size)
        ]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> Batch:
        return self.parts[i]


class Share(Sampler[int]):
    """The parts of rank r: r, r + ranks ..."""

    def __init__(self, count: int, ranks: int) -> None:
        self._count, self._ranks = count, ranks

    def __len__(self) -> int:
        return self._count // self._ranks

    def __iter__(self) -> Iterator[int]:
        rank = torch.distributed.get_rank() if self._ranks > 1 else 0
        yield from range(rank, self._count, self._ranks)


def product(setting: Setting) -> dict[str, Tensor]:
    """The weights after STEPS steps of the LightningModule in Lightning's Trainer."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    model, finetune = Model().to(dtype_of(setting)), settings_of(setting)
    names = {name for name, _ in model.named_parameters()}
    plan = TrainingPlan(
        finetune,
        groups_of(model, setting.kind),
        phases=[names],
        anchored={"layer.weight", "layer.bias"} if setting.kind == "l2_sp" else set(),
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        freeze_statistics=False,
        target=TARGET,
    )
    module = FineTuner(model, plan, image_config=CONFIG)
    batches = Batches(setting.accumulate * setting.ranks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=setting.ranks,
            strategy="ddp_fork" if setting.ranks > 1 else "auto",
            precision=setting.precision,
            use_distributed_sampler=False,
            max_epochs=1,
            accumulate_grad_batches=setting.accumulate,
            gradient_clip_val=setting.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loader = DataLoader(batches, batch_size=None, sampler=Share(len(batches), setting.ranks))
        trainer.fit(module, loader, DataLoader(Batches(1), batch_size=None))
    return {name: value.detach() for name, value in model.named_parameters()}


def written_out(setting: Setting) -> dict[str, Tensor]:
    """The same by the formulas: autograd of the loss with the penalty in it, torch's optimisers without any decay."""
    name, momentum, nesterov = OPTIMIZERS[setting.optimizer]
    dtype = dtype_of(setting)
    model = Model().to(dtype)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    rates = {"layer": 0.1, "fc": 0.2}
    groups: Any = [
        {"params": [value], "peak": rates[key.split(".")[0]], "lr": 0.0} for key, value in model.named_parameters()
    ]
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov)
    else:
        optimizer = torch.optim.Adam(groups, lr=0.0)
    finetune = settings_of(setting)
    strength = {"layer.weight": STRENGTH["backbone"], "fc.weight": STRENGTH["head"]}
    mean, std = (torch.tensor(CONFIG[key]).to(dtype) for key in ("mean", "std"))
    for step, (pixels, labels, *_) in enumerate(Batches(1).parts):
        factor = warmup_cosine(step, round(finetune.warmup_epochs * STEPS), STEPS)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        mixed = setting.precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            logits = model(((pixels.to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2))
            loss = F.cross_entropy(logits, labels)
        if setting.kind in {"l2", "l2_sp"}:
            for key, l2 in strength.items():
                near = start[key] if setting.kind == "l2_sp" and key.startswith("layer") else 0.0
                loss = loss + l2 * (model.get_parameter(key) - near).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        if setting.kind == "decoupled":
            with torch.no_grad():
                for key, decay in strength.items():
                    model.get_parameter(key).mul_(1 - rates[key.split(".")[0]] * factor * decay)
        optimizer.step()
    return {key: value.detach() for key, value in model.named_parameters()}


def difference(setting: Setting) -> float:
    """The largest difference of a weight."""
    mine, other = product(setting), written_out(setting)
    return max(float((mine[key].double() - other[key].double()).abs().max()) for key in other)


def place(setting: Setting) -> str:
    """Where the regulariser acts, or that it is refused."""
    name, _, _ = OPTIMIZERS[setting.optimizer]
    try:
        return penalty_location(setting.kind, name, clipped=setting.clip is not None)  # type: ignore[arg-type]
    except ValueError:
        return "refused"


def all_settings() -> Iterator[Setting]:
    """Every cell that is checked in float64 on one process."""
    for kind, optimizer, clip, accumulate in itertools.product(KINDS, OPTIMIZERS, (None, 0.3), (1, 3)):
        setting = Setting(kind, optimizer, clip, accumulate)
        if place(setting) != "refused":
            yield setting


def main() -> None:
    """Print the table as markdown."""
    columns: dict[str, dict[str, Any]] = {
        "plain": {},
        "3 parts": {"accumulate": 3},
        "clipped": {"clip": 0.3},
        "clipped, 3 parts": {"clip": 0.3, "accumulate": 3},
        "2 ranks": {"ranks": 2},
        "2 ranks, clipped": {"ranks": 2, "clip": 0.3},
        "bf16-mixed": {"precision": "bf16-mixed"},
    }
    print("| kind | optimiser | acts in | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 3) + "|")
    for kind, optimizer in itertools.product(KINDS, OPTIMIZERS):
        base = Setting(kind, optimizer)
        if place(base) == "refused":
            cells = ["refused", *["" for _ in columns]]
        else:
            clipped = place(replace(base, clip=0.3))
            where = place(base) if place(base) == clipped else f"{place(base)}; {clipped} where clipped"
            cells = [where, *(f"{difference(replace(base, **changes)):.0e}" for changes in columns.values())]
        print(f"| {kind} | {optimizer} | " + " | ".join(cells) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
