"""What ``auto`` in the section ``finetune`` stands for, from the number of training images and the backbone.

The values follow from the prepared data and the weights alone: the same on any number of processes and after any stop.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from headstart.config.choice import Choice
from headstart.config.finetune import FinetuneConfig, GroupRule, ResolvedFinetuneConfig
from headstart.core.errors import UserError
from headstart.models.backbone import BATCH_NORM, head_name
from headstart.targets.target import Target
from headstart.training.augment_choice import resolve_augment
from headstart.training.datamodule import global_batch_size
from headstart.training.figures import known_figures
from headstart.training.regularization.param_groups import HEAD, backbone_parameters

STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 300, 5, 20
FEWEST_AVERAGED = 10
"""Steps: over fewer, Adam's first ones weigh too much."""
RELATIVE_STEP = 0.003
"""Adam's rate over the size of the weights: a step moves each weight by up to the rate."""
SGD_LR = 0.003
FASTER_FROM_ZERO = 10
"""Factor on the rate of what starts from zero or at random: it has further to go."""
SHUFFLED_WHOLE, WINDOW_BYTES = 16 * 2**30, 2 * 2**30
"""Bytes of training images that are shuffled all with all, and those of a window where there are more. Numbers, and not
this machine's memory: a run that goes on elsewhere has the same order."""


ONLY_FOR_CLASSES = {"class_weights": "none", "logit_adjustment": 0.0, "label_smoothing": 0.0}
"""What is off where there are no classes, labels or grades."""


def epochs_for(train_images: int, batch_size: int) -> int:
    """Return the epochs that ``auto`` means for this many images: about 300 steps, within 5 and 20 epochs."""
    steps = max(1, train_images // min(batch_size, train_images))
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / steps)))


def check_target(finetune: FinetuneConfig, target: Target) -> None:
    """Raise UserError for a loss, a correction or a monitored figure that the target has no use for."""
    kind, known = f"prepare.target is {target.kind}", known_figures(target)
    if finetune.loss not in target.losses_known:
        raise UserError(f"finetune.loss: {kind}, which knows no loss {finetune.loss}: {', '.join(target.losses_known)}")
    for key, off in () if target.has_classes else ONLY_FOR_CLASSES.items():
        if (given := getattr(finetune, key)) != off:
            raise UserError(f"finetune.{key}: {kind}, which has no classes, so {given} means nothing: set it to {off}")
    if (monitor := finetune.early_stopping.monitor) not in {"auto", *known}:
        listed = ", ".join(["auto", *known])
        raise UserError(f"finetune.early_stopping.monitor: {kind}, of which {monitor} is not measured: use {listed}")


def resolve(
    finetune: FinetuneConfig,
    model: nn.Module,
    *,
    target: Target,
    train_images: int,
    train_bytes: int,
    pretrained: bool,
    evidence: Mapping[str, Any],
) -> tuple[ResolvedFinetuneConfig, list[Choice]]:
    """Replace each ``auto`` by its value; ``model`` is timm's, at its start, ``evidence`` is ``judge_changes``'.

    Returns:
        The section without ``auto``, and what was chosen, in the section's order.
    """
    batch_size = global_batch_size(train_images, finetune)
    steps = train_images // batch_size
    choices: dict[str, tuple[Any, str]] = {}

    def chosen(key: str, given: Any, value: Any, reason: str) -> Any:
        if given != "auto":
            return given
        choices[key] = value, reason
        return value

    images = f"{train_images:,} training images are {steps:,} steps an epoch"
    epochs = chosen("epochs", finetune.epochs, epochs_for(train_images, finetune.batch_size), images)
    lr = dict(finetune.lr)
    for group in [group for group, rate in lr.items() if rate == "auto"]:  # others need no look at the weights
        choices[f"lr.{group}"] = _learning_rate(finetune, group, model, pretrained=pretrained)
        lr[group], _ = choices[f"lr.{group}"]
    warmup = min(2.0, round(0.3 * epochs, 2))
    warmup = chosen("warmup_epochs", finetune.warmup_epochs, warmup, f"of {epochs} epochs")
    has_statistics = any(isinstance(module, BATCH_NORM) for module in model.modules())
    why = "the weights are pretrained" if pretrained else "the weights are random"
    why = why if has_statistics else "this backbone has none"
    batch_norm = chosen("batch_norm", finetune.batch_norm, "frozen" if pretrained else "train", why)
    why = "it tells how well images are told apart, however sure the model is"
    if target.calibrated_loss == "loss":
        why = f"{target.nouns} have no probabilities that could be put right later"
    monitor = chosen("early_stopping.monitor", finetune.early_stopping.monitor, f"val_{target.calibrated_loss}", why)
    patience = max(5, math.ceil(epochs / 2))
    patience = chosen("early_stopping.patience", finetune.early_stopping.patience, patience, f"of {epochs} epochs")
    averaged = max(FEWEST_AVERAGED, steps)
    ema = chosen("ema", finetune.ema, round(1 - 1 / averaged, 6), f"an average over about {averaged:,} steps")
    windows = 1 if train_bytes <= SHUFFLED_WHOLE else math.ceil(train_bytes / WINDOW_BYTES)
    why = f"the training images take {train_bytes / 2**30:,.1f} GiB"
    windows = chosen("shuffle_windows", finetune.shuffle_windows, windows, why)
    augment, augment_choices = resolve_augment(finetune.augment, evidence)
    values = finetune.model_dump() | {
        "epochs": epochs,
        "lr": lr,
        "warmup_epochs": warmup,
        "batch_norm": batch_norm,
        "shuffle_windows": windows,
        "early_stopping": finetune.early_stopping.model_dump() | {"monitor": monitor, "patience": patience},
        "ema": ema,
        "augment": augment.model_dump(),
    }
    resolved = ResolvedFinetuneConfig.model_validate(values)
    return resolved, [*(Choice(f"finetune.{key}", *choice) for key, choice in choices.items()), *augment_choices]


def _learning_rate(finetune: FinetuneConfig, group: str, model: nn.Module, *, pretrained: bool) -> tuple[float, str]:
    """Return the peak rate of a group, with two digits, and why."""
    from_zero = finetune.recipe in {"full", "head_first"} and group == _group_of_head(finetune.groups)
    factor = FASTER_FROM_ZERO if from_zero or not pretrained else 1
    reason = "" if factor == 1 else f", times {factor} since it starts from {'zero' if from_zero else 'random weights'}"
    if finetune.optimizer == "sgd":
        return float(f"{SGD_LR * factor:.1e}"), f"for sgd{reason}"
    size = _size_of_weights(model)
    return float(f"{RELATIVE_STEP * size * factor:.1e}"), f"{RELATIVE_STEP:.1%} of the weights' size {size:.2g}{reason}"


def _size_of_weights(model: nn.Module) -> float:
    """Return the median over the backbone's weight tensors of their root mean square."""
    backbone = backbone_parameters(model, head_name(model))
    weights = (value.detach() for name, value in model.named_parameters() if name in backbone and value.ndim > 1)
    return statistics.median(float(value.square().mean().sqrt()) for value in weights)


def _group_of_head(rules: Iterable[GroupRule]) -> str | None:
    """Return the group that the head's weight is in."""
    return next((rule.name for rule in rules if re.fullmatch(rule.match, f"{HEAD}weight")), None)
