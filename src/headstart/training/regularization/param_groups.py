"""Named groups of a model's parameters, by ordered rules over their names; the first rule that matches wins.

The habit is big_vision's (``_split_frozen``, ``make_mask_trees``): every parameter is in exactly one group, or it is an
error, and what matched is shown.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from timm.models import group_parameters as timm_layers
from torch import nn

from headstart.core.errors import UserError

HEAD = "head."
BACKBONE = "backbone."


@dataclass(frozen=True)
class Rule:
    """Parameters whose whole name matches ``pattern`` are ``group``'s.

    ``biases_and_norms`` says whether its biases, normalisation weights and what timm's model itself names in
    ``no_weight_decay`` are in the group's penalty or decay too.
    """

    pattern: str
    group: str
    biases_and_norms: bool


@dataclass(frozen=True)
class Group:
    """Parameters of one rule that share λ and learning rate: with layer-wise learning rates a rule has several.

    Attributes:
        name: the rule's, with ``_free`` for those of its parameters that are outside its penalty.
        l2: λ of the penalty ``λ ‖W‖²``.
        decay: decoupled decay, ``W ← (1 − lr · decay) W`` each step.
        lr: peak learning rate.
        parameters: by the model's own names, in its order.
    """

    name: str
    l2: float
    decay: float
    lr: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Numbers in the group."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def rule_names(model: nn.Module, classifier: str) -> dict[str, str]:
    """Return each parameter the name that rules match: ``head.weight`` whatever timm calls it, else ``backbone. …``."""
    return {
        name: HEAD + name.removeprefix(classifier + ".") if name.startswith(classifier + ".") else BACKBONE + name
        for name, _ in model.named_parameters()
    }


def group_parameters(
    model: nn.Module,
    classifier: str,
    rules: Sequence[Rule],
    *,
    lr: Mapping[str, float],
    l2: Mapping[str, float],
    decay: Mapping[str, float],
    layer_decay: float | None = None,
) -> list[Group]:
    """Put every parameter in the group of the first rule that matches its name.

    Args:
        model: timm's.
        classifier: name of the classifier's module.
        rules: in order; several may name one group.
        lr: peak learning rate of each group.
        l2: λ of each group; 0 for one that is missing.
        decay: decoupled decay of each group; 0 for one that is missing.
        layer_decay: factor on the learning rate from one of timm's layers to the one below.

    Raises:
        UserError: a parameter that no rule matches, or a rule that no parameter is left for.
    """
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    depth = _depths(model) if layer_decay is not None else {}
    aliases, groups, matched = rule_names(model, classifier), dict[tuple[str, float], Group](), set[Rule]()
    for name, parameter in model.named_parameters():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, aliases[name])), None)
        if rule is None:
            raise UserError(f"finetune.groups: no rule matches the parameter {aliases[name]}; end with match: '.*'")
        matched.add(rule)
        free = (parameter.ndim <= 1 or name in no_decay) and not rule.biases_and_norms
        key = rule.group + "_free" * free
        rate = lr[rule.group] * (layer_decay or 1.0) ** depth.get(name, 0)
        numbers = (0.0, 0.0) if free else (l2.get(rule.group, 0.0), decay.get(rule.group, 0.0))
        groups.setdefault((key, rate), Group(key, *numbers, rate)).parameters[name] = parameter
    for rule in rules:
        if rule not in matched:
            raise UserError(
                f"finetune.groups: {rule.pattern!r} of the group {rule.group} matches no parameter that is left; "
                f"the names are {', '.join(list(aliases.values())[:3])} ..."
            )
    return list(groups.values())


def stages(model: nn.Module, classifier: str) -> list[set[str]]:
    """Return the names of the parameters of the backbone's stages (timm's coarse layers), from the top down.

    A stage of normalisation alone is joined with the one below it. The classifier is in none.
    """
    found: list[set[str]] = []
    only_norms = False
    names = rule_names(model, classifier)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    for layer in _layers(model, coarse=True):
        mine = {name for name in layer if names[name].startswith(BACKBONE)}
        if not mine:
            continue
        if only_norms:
            found[-1] |= mine
        else:
            found.append(mine)
        only_norms = all(shapes[name] <= 1 for name in found[-1])
    return found


def _depths(model: nn.Module) -> dict[str, int]:
    """Return the layers between each parameter's and the one that holds the classifier, as timm counts them."""
    return {name: depth for depth, layer in enumerate(_layers(model, coarse=False)) for name in layer}


def _layers(model: nn.Module, *, coarse: bool) -> Iterator[list[str]]:
    """Return the names of the parameters of timm's layers, from the top down; all in one where timm knows no layers."""
    if not hasattr(model, "group_matcher"):
        yield [name for name, _ in model.named_parameters()]
        return
    layers: dict[int, list[str]] = timm_layers(model, model.group_matcher(coarse=coarse))  # type: ignore[operator]
    for number in sorted(layers, reverse=True):
        yield layers[number]


def groups_table(groups: Sequence[Group]) -> list[dict[str, str | int | float]]:
    """List the groups for logs and reports: name, tensors, parameters, λ, decay, peak learning rate."""
    return [
        {
            "group": group.name,
            "tensors": len(group.parameters),
            "parameters": group.count,
            "l2": group.l2,
            "decay": group.decay,
            "lr": group.lr,
        }
        for group in groups
    ]
