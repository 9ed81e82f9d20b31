"""What ``finetune.recipe`` and ``finetune.groups`` mean for one model: its head, its parameter groups, its phases.

Strategies, by the name that ``finetune.recipe`` gives them:

- ``lp_ft``: the head starts from the probe's, everything trains (Kumar et al. 2022, "Fine-Tuning can Distort
  Pretrained Features").
- ``full``: the head starts from zero, everything trains.
- ``head_first``: the head starts from zero and trains alone, then everything trains.
- ``gradual``: the head starts from the probe's and trains alone, then the backbone's stages join it from the top down
  (Howard and Ruder 2018, ULMFiT).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headstart.config.choice import Choice
from headstart.config.finetune import FinetuneConfig, ResolvedFinetuneConfig
from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.models.backbone import BATCH_NORM, backbone_for, channels_last, head_name, set_head
from headstart.models.head import read_head
from headstart.targets.target import Measure, Summable, Target
from headstart.training.augment_choice import read_evidence
from headstart.training.datamodule import global_batch_size
from headstart.training.figures import SUMMED, HistoryRow, Monitor, measured_figures, shown
from headstart.training.losses import warmup_cosine
from headstart.training.regularization.param_groups import (
    Group,
    backbone_parameters,
    backbone_stages,
    group_parameters,
    groups_table,
)
from headstart.training.regularization.penalty import (
    INERT,
    NOTICEABLE,
    expected_shrink,
    l2_for_shrink,
    penalty_location,
)
from headstart.training.resolve import check_target, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training that follows from params, the model and the number of images; computed once."""

    finetune: ResolvedFinetuneConfig  # without `auto`, for what is used as it stands there (epochs, clip, seed ...)
    groups: list[Group]  # every parameter of the model, once; the optimiser has these groups in this order
    phases: list[set[str]]  # names of the parameters that train in each phase; the last phase has all of them
    anchored: set[str]  # names of the parameters that ``l2_sp`` pulls towards their values at the start
    batch_size: int  # images of an optimiser step, over all processes
    steps_per_epoch: int
    freeze_statistics: bool  # whether BatchNorm keeps its running statistics
    target: Target  # of the model's outputs
    choices: Sequence[Choice] = ()  # what `auto` stood for

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.finetune.epochs * self.steps_per_epoch

    @cached_property
    def penalty_in_loss(self) -> bool:
        """Whether the penalty is written out in the loss."""
        kind, clipped = self.finetune.l2.kind, self.finetune.clip is not None
        return penalty_location(kind, self.finetune.optimizer, clipped=clipped) == "loss"

    @cached_property
    def lr_factor(self) -> Callable[[int], float]:
        """The schedule: the factor on every learning rate, by the number of optimiser steps taken."""
        warmup = round(self.finetune.warmup_epochs * self.steps_per_epoch)
        return partial(warmup_cosine, warmup=warmup, total=self.steps)

    @cached_property
    def first_phase(self) -> dict[str, int]:
        """The phase in which each parameter begins to train, by its name."""
        return {name: i for i, names in reversed(list(enumerate(self.phases))) for name in names}

    @cached_property
    def figures(self) -> Mapping[str, Measure]:
        """What validation measures, by the names of history.csv."""
        return measured_figures(self.target, self.finetune.early_stopping.monitor)

    @property
    def monitor(self) -> Monitor:
        """The figure that decides which epoch is best."""
        name = self.finetune.early_stopping.monitor
        return Monitor(name, self.figures[name].higher_is_better)

    @property
    def first_measure(self) -> str:
        """The measure that decides which of several models is better."""
        return next(iter(self.target.measures))

    @property
    def is_additive(self) -> bool:
        """Whether the figures are means over the images: the losses and the accuracy of classes."""
        return isinstance(self.target, Summable) and len(self.figures) == len(SUMMED)

    def told(self, row: HistoryRow) -> str:
        """Return the losses of a row, the target's first measure and what is monitored, in words."""
        losses = (name for name in self.figures if name in SUMMED[:2])
        names = dict.fromkeys([*losses, f"val_{self.first_measure}", self.monitor.name])
        return ", ".join(f"{self.figures[name].title} {shown(row[name])}" for name in names)

    def end_of_phase(self, phase: int) -> int:
        """Return the number of epochs after which a phase is over."""
        last = phase == len(self.phases) - 1
        return self.finetune.epochs if last else (phase + 1) * self.finetune.phase_epochs

    def lr_factors(self, group: Group) -> NDArray[np.float64]:
        """Return the schedule from the step on at which the first of a group's parameters trains: (steps,)."""
        phase = min(self.first_phase[name] for name in group.parameters)
        begin = phase * self.finetune.phase_epochs * self.steps_per_epoch
        return np.array([self.lr_factor(step) for step in range(begin, self.steps)])

    def trains_statistics(self, model: nn.Module) -> bool:
        """Return whether the statistics of BatchNorm layers of the model follow from each batch."""
        return not self.freeze_statistics and any(isinstance(module, BATCH_NORM) for module in model.modules())

    def with_choices(self, **choices: str | int) -> "TrainingPlan":
        """Return this plan with what was chosen for this machine: the precision, the accumulation steps."""
        return replace(self, finetune=self.finetune.model_copy(update=choices))


def starting_model(
    backbone: BackboneConfig,
    finetune: FinetuneConfig,
    *,
    target: Target,
    train_images: int,
    train_bytes: int,
    in_chans: int = 3,
) -> tuple[nn.Module, TrainingPlan]:
    """Build the model as it is before the first step, and the plan of its training.

    ``target`` and ``in_chans``, the number of bands, are of the images.

    The probe's chosen head is taken; where its λ is smaller than fine-tuning's, the head on the path whose λ is nearest
    to fine-tuning's: one of a smaller λ would start far from its objective's minimum, where it is steep; on the digits
    the first steps then diverged.

    Raises:
        UserError: see ``make_plan``; or the target can't be trained so, or the probe has no heads.
    """
    check_target(finetune, target)
    target = target.with_loss(finetune.loss)
    model = channels_last(backbone_for(backbone, target.outputs, in_chans))
    size = {"train_images": train_images, "train_bytes": train_bytes}
    plan = make_plan(model, finetune, target=target, **size, pretrained=backbone.pretrained)
    if finetune.recipe in {"lp_ft", "gradual"}:
        weight = f"{head_name(model)}.weight"
        l2 = next(group.l2 for group in plan.groups if weight in group.parameters)
        set_head(model, read_head(l2, target.outputs))
    return model, plan


def make_plan(
    model: nn.Module,
    params: FinetuneConfig,
    *,
    target: Target,
    train_images: int,
    train_bytes: int,
    pretrained: bool,
) -> TrainingPlan:
    """Plan the training of a timm model whose outputs are the target's.

    Raises:
        UserError: the groups' rules do not fit the model, or there are too few epochs for the phases.
    """
    finetune, choices = resolve(
        params,
        model,
        target=target,
        train_images=train_images,
        train_bytes=train_bytes,
        pretrained=pretrained,
        evidence=read_evidence(),
    )
    kind, head = finetune.l2.kind, head_name(model)
    groups = group_parameters(
        model,
        head,
        finetune.groups,
        lr=finetune.lr,
        l2=finetune.l2.by_group if kind in {"l2", "l2_sp"} else {},
        decay=finetune.decay_by_group if kind == "decoupled" else {},
        layer_decay=finetune.layer_decay,
    )
    batch_size = global_batch_size(train_images, finetune)
    return TrainingPlan(
        finetune,
        groups,
        phases=_phases(model, head, finetune),
        anchored=backbone_parameters(model, head) if kind == "l2_sp" else set(),
        batch_size=batch_size,
        steps_per_epoch=train_images // batch_size,
        freeze_statistics=finetune.batch_norm == "frozen",
        target=target,
        choices=choices,
    )


def _phases(model: nn.Module, head: str, finetune: ResolvedFinetuneConfig) -> list[set[str]]:
    """Return the names of the parameters that train in each phase."""
    everything = {name for name, _ in model.named_parameters()}
    if finetune.recipe in {"lp_ft", "full"}:
        return [everything]
    phases = [everything - backbone_parameters(model, head)]
    if finetune.recipe == "head_first":
        return [*phases, everything]
    for stage in backbone_stages(model, head):
        phases.append(phases[-1] | stage)
    if (len(phases) - 1) * finetune.phase_epochs >= finetune.epochs:
        raise UserError(
            f"finetune.epochs: gradual has {len(phases)} phases on this backbone, of {finetune.phase_epochs} epochs "
            f"each before the last: it needs more than {(len(phases) - 1) * finetune.phase_epochs}, not "
            f"{finetune.epochs}"
        )
    return phases


def describe(plan: TrainingPlan) -> list[dict[str, str | int | float | None]]:
    """Log the groups and where the regulariser acts, and warn where it will have no effect.

    Returns:
        The rows of ``groups_table``, each with ``expected_shrink``: None where no formula holds.
    """
    finetune, kind, rows = plan.finetune, plan.finetune.l2.kind, []
    for choice in plan.choices:
        logger.info("%s", choice)
    corrections = {"sampling": "none", "class_weights": "none", "logit_adjustment": 0}
    if len(used := [f"finetune.{key}" for key, off in corrections.items() if getattr(finetune, key) != off]) > 1:
        logger.warning("%s: each makes up for what is rare, together they do it more than once", " and ".join(used))
    for group, row in zip(plan.groups, groups_table(plan.groups), strict=True):
        shrink = expected_shrink(group, kind, finetune.optimizer, plan.lr_factors(group), finetune.momentum)
        rows.append({**row, "expected_shrink": shrink})
        logger.info(
            "group %-13s %4d tensors %11d parameters  λ %.1e  decay %.1e  lr %.1e%s",
            *row.values(),
            "" if shrink is None else f"  expected to shrink by {shrink:.2%}",
        )
    if plan.penalty_in_loss:
        reason = kind if kind == "l2_sp" else "clipped with it" if finetune.clip else finetune.optimizer
        logger.info("the penalty is written out in the loss (%s)", reason)
    for name in dict.fromkeys(rule.name for rule in finetune.groups):
        layers = [group for group in plan.groups if group.name == name]
        if layers:  # a rule that matches biases and norms alone may have no penalty at all
            _warn_if_inert(max(layers, key=lambda group: group.lr), plan)
    return rows


def _warn_if_inert(group: Group, plan: TrainingPlan) -> None:
    """Warn where a group's λ or decay is too small to be noticed, and say which one would be."""
    finetune, factors = plan.finetune, plan.lr_factors(group)
    kind, momentum = finetune.l2.kind, finetune.momentum
    shrink = expected_shrink(group, kind, finetune.optimizer, factors, momentum)
    key, strength = ("decay", group.decay) if kind == "decoupled" else ("l2", group.l2)
    if strength and group.lr and shrink is not None and shrink < INERT:
        noticeable = l2_for_shrink(NOTICEABLE, kind, group.lr, factors, momentum)
        logger.warning(
            "finetune.%s.%s: %.1e has no effect to speak of: in %d steps at learning rates up to %.1e it takes %.2g %% "
            "off %s; about %.1e would take %g %%",
            *(key, group.name, strength, len(factors), group.lr, 100 * shrink),
            "the distance from the pretrained weights" if kind == "l2_sp" else "the weights",
            *(noticeable, 100 * NOTICEABLE),
        )
