"""What ``finetune.recipe`` and ``finetune.groups`` mean for one model: its start, its groups, its phases.

- ``lp_ft``: the head starts from the probe's, all train (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
  Features").
- ``full``: the head starts from zero, all train.
- ``head_first``: the head starts from zero and trains alone, then all train.
- ``gradual``: the head from the probe's and alone, then the backbone's stages join it from the top down (Howard and
  Ruder 2018, ULMFiT).
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.models.backbone import backbone_for, channels_last, head_name, set_head
from headstart.models.head import read_head
from headstart.training.losses import warmup_cosine
from headstart.training.regularization.param_groups import (
    BACKBONE,
    Group,
    Rule,
    group_parameters,
    groups_table,
    rule_names,
    stages,
)
from headstart.training.regularization.penalty import (
    INERT,
    NOTICEABLE,
    expected_shrink,
    l2_for_shrink,
    penalty_location,
)

logger = logging.getLogger(__name__)


def starting_model(backbone: BackboneConfig, finetune: FinetuneConfig, classes: int) -> nn.Module:
    """Build the backbone with timm's own head, as it is before the first step.

    A chosen head of a smaller λ than fine-tuning's would start far from its objective's minimum, and steep; on the
    digits the first steps then diverged. There it is the head at fine-tuning's own λ.
    """
    model = backbone_for(backbone, classes)
    if finetune.recipe in {"lp_ft", "gradual"}:
        set_head(model, read_head(_head_l2(model, finetune)))
    return channels_last(model)


def _head_l2(model: nn.Module, finetune: FinetuneConfig) -> float:
    """Return the λ of the head's weights; 0 where they have none."""
    name = head_name(model) + ".weight"
    return next(group.l2 for group in groups_of(model, finetune) if name in group.parameters)


def groups_of(model: nn.Module, finetune: FinetuneConfig) -> list[Group]:
    """Put every parameter in its group, with the numbers that the kind of regulariser reads."""
    kind = finetune.l2.kind
    return group_parameters(
        model,
        head_name(model),
        [Rule(rule.match, rule.name, rule.biases_and_norms == "in") for rule in finetune.groups],
        lr=finetune.lr,
        l2=finetune.l2.by_group if kind in {"l2", "l2_sp"} else {},
        decay=finetune.decay_by_group if kind == "decoupled" else {},
        layer_decay=finetune.layer_decay,
    )


def pretrained_parameters(model: nn.Module) -> set[str]:
    """Name the parameters that have pretrained values: all but the classifier's."""
    names = rule_names(model, head_name(model))
    return {name for name, role in names.items() if role.startswith(BACKBONE)}


def phases_of(model: nn.Module, finetune: FinetuneConfig) -> list[set[str]]:
    """Name the parameters that train in each phase; the last one has all.

    Raises:
        UserError: there are too few epochs for the phases.
    """
    everything = set(rule_names(model, head_name(model)))
    if finetune.recipe in {"lp_ft", "full"}:
        return [everything]
    phases = [everything - pretrained_parameters(model)]
    if finetune.recipe == "head_first":
        return [*phases, everything]
    for stage in stages(model, head_name(model)):
        phases.append(phases[-1] | stage)
    if (len(phases) - 1) * finetune.phase_epochs >= finetune.epochs:
        raise UserError(
            f"finetune.epochs: gradual has {len(phases)} phases on this backbone, of {finetune.phase_epochs} epochs "
            f"each before the last: it needs more than {(len(phases) - 1) * finetune.phase_epochs}, not "
            f"{finetune.epochs}"
        )
    return phases


def describe(
    groups: Sequence[Group], phases: Sequence[set[str]], finetune: FinetuneConfig, steps_per_epoch: int
) -> list[dict[str, str | int | float | None]]:
    """Log the resolved groups and where the regulariser acts, and warn where it will have no effect.

    Returns:
        ``param_groups.table``'s rows, each with ``expected_shrink``, None where no formula holds.
    """
    kind, rows = finetune.l2.kind, []
    for group, row in zip(groups, groups_table(groups), strict=True):
        shrink = expected_shrink(
            group, kind, finetune.optimizer, _factors(group, phases, finetune, steps_per_epoch), finetune.momentum
        )
        rows.append({**row, "expected_shrink": shrink})
        logger.info(
            "group %-13s %4d tensors %11d parameters  λ %.1e  decay %.1e  lr %.1e%s",
            *row.values(),
            "" if shrink is None else f"  expected to shrink by {shrink:.2%}",
        )
    place = penalty_location(kind, finetune.optimizer, clipped=finetune.clip is not None)
    if place == "loss":
        reason = kind if kind == "l2_sp" else "clipped with it" if finetune.clip else finetune.optimizer
        logger.info("the penalty is written out in the loss (%s)", reason)
    for name in dict.fromkeys(rule.name for rule in finetune.groups):
        layers = [group for group in groups if group.name == name]
        if layers:  # a group of biases and norms alone, all of them free, has no penalty
            fastest = max(layers, key=lambda group: group.lr)
            _warn_if_inert(fastest, finetune, _factors(fastest, phases, finetune, steps_per_epoch))
    return rows


def _warn_if_inert(group: Group, finetune: FinetuneConfig, factors: NDArray[np.float64]) -> None:
    kind, momentum = finetune.l2.kind, finetune.momentum
    shrink = expected_shrink(group, kind, finetune.optimizer, factors, momentum)
    key, strength = ("decay", group.decay) if kind == "decoupled" else ("l2", group.l2)
    if strength and group.lr and shrink is not None and shrink < INERT:
        matters = l2_for_shrink(NOTICEABLE, kind, group.lr, factors, momentum)
        logger.warning(
            "finetune.%s.%s: %.1e has no effect to speak of: in %d steps at learning rates up to %.1e it takes %.2g %% "
            "off %s; about %.1e would take %g %%",
            *(key, group.name, strength, len(factors), group.lr, 100 * shrink),
            "the distance from the pretrained weights" if kind == "l2_sp" else "the weights",
            *(matters, 100 * NOTICEABLE),
        )


def _factors(
    group: Group, phases: Sequence[set[str]], finetune: FinetuneConfig, steps_per_epoch: int
) -> NDArray[np.float64]:
    """Return the schedule from the step on at which the first of a group's parameters trains."""
    first = next(i for i, names in enumerate(phases) if names & set(group.parameters))
    total, warmup = finetune.epochs * steps_per_epoch, round(finetune.warmup_epochs * steps_per_epoch)
    begins = first * finetune.phase_epochs * steps_per_epoch
    return np.array([warmup_cosine(step, warmup, total) for step in range(begins, total)])
