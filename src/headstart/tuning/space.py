"""What `headstart tune` searches: a range for each key of ``finetune``, and the points that are tried.

The points are quasi-random (a scrambled Halton sequence): try n follows from n alone, so that any number of processes
propose without talking to each other, and a few dozen points cover the range of every key evenly (Bousquet et al. 2017,
"Critical Hyper-Parameters: No Random, No Cry", arXiv 1706.03200). A model of the figures, such as Optuna's TPE, would
with so few tries still be in its random start.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import qmc

from headstart.config.finetune import ResolvedFinetuneConfig
from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.targets.target import Target
from headstart.training.augment_choice import read_evidence
from headstart.training.losses import warmup_cosine
from headstart.training.phases import starting_model
from headstart.training.regularization.penalty import NOTICEABLE, l2_for_shrink
from headstart.training.resolve import ONLY_FOR_CLASSES, resolve

LR, L2, DECAY, OPTIMIZER, EPOCHS, WARMUP = (
    f"finetune.{name}" for name in ("lr", "l2", "decay", "optimizer", "epochs", "warmup_epochs")
)
RATES = (0.1, 10.0)
"""Peak learning rates, log-uniform, as multiples of those that `auto` means for the optimiser."""
SHRINK = (NOTICEABLE, 0.5)
"""λ, log-uniform, goes from what takes 1 % off the weights in the whole training to what takes half: one that matters,
with few images as with many."""
ADAM_L2 = (1e-6, 1e-2)
"""λ under Adam, log-uniform: its second moment rescales the penalty, and no formula says what that takes."""
CHOICES: dict[str, Sequence[Any]] = {
    "finetune.batch_norm": ("frozen", "train"),
    "finetune.clip": (None, 1.0),
    "finetune.layer_decay": (None, 0.75),
    "finetune.label_smoothing": (0.0, 0.1),
    "finetune.augment.scale": ([0.35, 1.0], [0.6, 1.0], [1.0, 1.0]),
}
ON_REQUEST: dict[str, Sequence[Any]] = {
    "finetune.augment.hflip": (0.0, 0.5),
    "finetune.augment.vflip": (0.0, 0.5),
    "finetune.augment.mixup": (0.0, 0.2),
    "finetune.augment.policy": ("none", "trivialaugment"),
    "finetune.batch_size": (32, 64, 128),
    "finetune.sampling": ("none", "sqrt", "balanced"),
    "finetune.class_weights": ("none", "balanced"),
    "finetune.logit_adjustment": (0.0, 1.0),
}
"""Keys that are searched only where they are named."""


def value_of(content: Mapping[str, Any], key: str) -> Any:
    """Return what stands under a dotted key of ``params.yaml``, None where nothing does."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def with_changes(params: Params, changes: Mapping[str, Any]) -> Params:
    """Return the params with other values at some dotted keys; raises UserError as ``parse_params`` does."""
    content = params.model_dump()
    for key, value in changes.items():
        parent, _, name = key.rpartition(".")
        value_of(content, parent)[name] = value
    return parse_params(content)


class Space:
    """The keys that are searched for these params, and what try n has for each of them.

    A key is searched where it has its default, or where ``named`` has it. The optimiser is searched only along with
    every learning rate, since a rate of SGD's means nothing to Adam.

    Attributes:
        keys: those that are searched.
        plan: of the training with the params as they are.

    Raises:
        UserError: a named key has no range here.
    """

    def __init__(
        self,
        params: Params,
        named: Sequence[str],
        *,
        target: Target,
        train_images: int,
        train_bytes: int,
        in_chans: int = 3,
    ) -> None:
        self._params = params
        self._size: dict[str, Any] = {"target": target, "train_images": train_images, "train_bytes": train_bytes}
        self._model, self.plan = starting_model(params.backbone, params.finetune, in_chans=in_chans, **self._size)
        content, default = params.model_dump(), Params().model_dump()
        strength = {"l2": L2, "l2_sp": L2, "decoupled": DECAY}.get(params.finetune.l2.kind)
        groups = list(dict.fromkeys(rule.name for rule in params.finetune.groups))
        rates = [f"{LR}.{group}" for group in groups]
        fixed = set[str]() if target.has_classes else {f"finetune.{key}" for key in ONLY_FOR_CLASSES}
        usual = [*rates, *(f"{strength}.{group}" for group in groups if strength), OPTIMIZER, *CHOICES]
        usual, others = ([key for key in keys if key not in fixed] for keys in (usual, ON_REQUEST))
        if unknown := sorted(set(named) - {*usual, *others, EPOCHS}):
            known = ", ".join([*usual, *others, EPOCHS])
            raise UserError(f"--search {unknown[0]}: has no range here; those that have one: {known}")

        def is_free(key: str) -> bool:
            return key in named or (key in usual and value_of(content, key) == value_of(default, key))

        self.keys = [key for key in (*usual, *others) if is_free(key)]
        if OPTIMIZER not in named and not set(rates) <= set(self.keys):
            self.keys = [key for key in self.keys if key != OPTIMIZER]
        self.epochs, self.warmup_epochs = self.plan.finetune.epochs, self.plan.finetune.warmup_epochs
        self.epochs_may_change = EPOCHS in named or params.finetune.epochs == Params().finetune.epochs

    def resolved(self, changes: Mapping[str, Any]) -> ResolvedFinetuneConfig:
        """Return the section with these changes and without `auto`."""
        changed, pretrained = with_changes(self._params, changes).finetune, self._params.backbone.pretrained
        return resolve(changed, self._model, **self._size, pretrained=pretrained, evidence=read_evidence())[0]

    def propose(self, number: int, epochs: int) -> dict[str, Any]:
        """Return the values of try ``number`` by dotted key; try 0 has the params as they are.

        ``epochs`` is how many each try may take; it is among the values where the params mean another number.
        """
        changes: dict[str, Any] = {}
        if epochs != self.epochs:
            changes[EPOCHS] = epochs
            if self._params.finetune.warmup_epochs != "auto" and self.warmup_epochs > epochs:
                changes[WARMUP] = epochs
        if number == 0 or not self.keys:
            return changes
        sequence = qmc.Halton(len(self.keys), rng=self._params.finetune.seed).fast_forward(number - 1)
        draw = dict(zip(self.keys, sequence.random(1)[0].tolist(), strict=True))
        adam = "adamw" if self._params.finetune.l2.kind == "decoupled" else "adam"
        choices = {OPTIMIZER: ("sgd", adam), **CHOICES, **ON_REQUEST}
        changes |= {key: choices[key][int(draw[key] * len(choices[key]))] for key in self.keys if key in choices}
        # In this order: the rates are about the optimiser's, and what a λ takes off the weights follows from both.
        rates = [key for key in self.keys if key.startswith(f"{LR}.")]
        usual = self.resolved(changes | dict.fromkeys(rates, "auto")).lr
        for key in rates:
            rate = usual[key.rpartition(".")[2]]
            changes[key] = _log_uniform((rate * RATES[0], rate * RATES[1]), draw[key])
        finetune = self.resolved(changes)
        for key in self.keys:
            parent, _, group = key.rpartition(".")
            if parent in {L2, DECAY}:
                changes[key] = _log_uniform(self._strengths(finetune, group), draw[key])
        return changes

    def _strengths(self, finetune: ResolvedFinetuneConfig, group: str) -> tuple[float, float]:
        """Return the least and the largest λ, or decoupled decay, of a group."""
        kind = finetune.l2.kind
        if finetune.optimizer != "sgd" and kind != "decoupled":
            return ADAM_L2
        images: int = self._size["train_images"]
        per_epoch = images // min(finetune.batch_size, images)
        steps, warmup = finetune.epochs * per_epoch, round(finetune.warmup_epochs * per_epoch)
        factors = np.array([warmup_cosine(step, warmup, steps) for step in range(steps)])
        takes = partial(l2_for_shrink, kind=kind, lr=finetune.lr[group], factors=factors, momentum=finetune.momentum)
        return takes(SHRINK[0]), takes(SHRINK[1])


def _log_uniform(bounds: tuple[float, float], draw: float) -> float:
    """Return the value at this fraction of the way between the bounds' logarithms, with two digits."""
    low, high = np.log(bounds)
    return float(f"{np.exp(low + (high - low) * draw):.2g}")
