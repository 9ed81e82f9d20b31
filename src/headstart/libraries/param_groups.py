"""Named groups of a model's parameters, by ordered rules over their names; the first rule that matches wins.

The habit is big_vision's (``_split_frozen``, ``make_mask_trees``): every parameter is in exactly one group, or it is an
error, and what matched is shown.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Rule:
    """Parameters whose whole name matches ``pattern`` are ``group``'s; its penalty weighs ``l2``."""

    pattern: str
    group: str
    l2: float
    lr: float


@dataclass(frozen=True)
class Group:
    """Parameters that share a rule.

    Attributes:
        name: the group's.
        l2: λ of the penalty ``λ ‖W‖²``.
        lr: peak learning rate.
        parameters: by name, in the model's order.
    """

    name: str
    l2: float
    lr: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Numbers in the group."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def group_parameters(model: nn.Module, rules: Sequence[Rule]) -> list[Group]:
    """Put every parameter in the group of the first rule that matches its name.

    Raises:
        ValueError: a parameter that no rule matches.
    """
    groups: dict[Rule, Group] = {rule: Group(rule.group, rule.l2, rule.lr) for rule in rules}
    for name, parameter in model.named_parameters():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            raise ValueError(f"no rule for the parameter {name}")
        groups[rule].parameters[name] = parameter
    return [group for group in groups.values() if group.parameters]


def default_rules(
    model: nn.Module,
    classifier: str,
    *,
    l2: dict[str, float],
    lr: dict[str, float],
    l2_on_biases_and_norms: bool,
) -> list[Rule]:
    """Give the rules for ``head`` (the classifier) and ``backbone`` (the rest).

    Biases, normalisation weights and what timm's model itself names in ``no_weight_decay`` are in groups of their own,
    ``head_free`` and ``backbone_free``, with λ = 0, unless ``l2_on_biases_and_norms``.

    Args:
        model: timm's.
        classifier: name of the classifier's module.
        l2: λ of ``backbone`` and ``head``.
        lr: peak learning rate of ``backbone`` and ``head``.
        l2_on_biases_and_norms: whether they are in the penalty too.
    """
    head = re.escape(classifier) + r"\..*"
    penalised = [Rule(head, "head", l2["head"], lr["head"]), Rule(".*", "backbone", l2["backbone"], lr["backbone"])]
    if l2_on_biases_and_norms:
        return penalised
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    free = [name for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name in no_decay]
    free_in_head = [name for name in free if re.fullmatch(head, name)]
    return [
        Rule(_any_of(free_in_head), "head_free", 0.0, lr["head"]),
        Rule(_any_of(free), "backbone_free", 0.0, lr["backbone"]),
        *penalised,
    ]


def _any_of(names: Sequence[str]) -> str:
    """Give a pattern that matches these names and no other."""
    return "|".join(map(re.escape, names)) or r"(?!)"  # an empty alternation would match the empty name


def table(groups: Sequence[Group]) -> list[dict[str, str | int | float]]:
    """List the groups for logs and reports: name, tensors, parameters, λ, peak learning rate."""
    return [
        {"group": g.name, "tensors": len(g.parameters), "parameters": g.count, "l2": g.l2, "lr": g.lr} for g in groups
    ]
