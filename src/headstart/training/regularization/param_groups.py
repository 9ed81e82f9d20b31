"""Named groups of a model's parameters, by ordered rules over their names; the first rule that matches wins.

As in big_vision (``_split_frozen``, ``make_mask_trees``), every parameter is in exactly one group, or it is an error,
and the groups are logged.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from timm.models import group_parameters as timm_layers
from torch import nn

from headstart.config.finetune import GroupRule
from headstart.core.errors import UserError
from headstart.models.stem import stem_layers

HEAD = "head."
BACKBONE = "backbone."
STEM = "stem"
"""As the whole of a rule: the layers that read the image, whatever timm calls them."""
NO_DECAY_SUFFIX = "_free"
"""Ends the name of a group that is outside its rule's penalty and decay."""


@dataclass(frozen=True)
class Group:
    """Parameters of one rule that share λ and learning rate: with layer-wise learning rates a rule has several."""

    name: str  # the rule's, with ``_free`` for those of its parameters that are outside its penalty and decay
    l2: float  # λ of the penalty ``λ ‖W‖²``
    decay: float  # decoupled, ``W ← (1 − lr · decay) W`` each step
    lr: float  # at its peak
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)  # by the model's own names, in its order

    @property
    def count(self) -> int:
        """Number of scalars in the group."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def rule_names(model: nn.Module, classifier: str) -> dict[str, str]:
    """Return each parameter's name as rules see it: ``head.weight`` whatever timm calls it, or ``backbone. …``."""
    return {
        name: HEAD + name.removeprefix(classifier + ".") if name.startswith(classifier + ".") else BACKBONE + name
        for name, _ in model.named_parameters()
    }


def backbone_parameters(model: nn.Module, classifier: str) -> set[str]:
    """Return the names of all parameters but the classifier's: those that may have pretrained values."""
    return {name for name, alias in rule_names(model, classifier).items() if alias.startswith(BACKBONE)}


def group_parameters(
    model: nn.Module,
    classifier: str,
    rules: Sequence[GroupRule],
    *,
    lr: Mapping[str, float],
    l2: Mapping[str, float],
    decay: Mapping[str, float],
    layer_decay: float | None = None,
) -> list[Group]:
    """Assign every parameter to the group of the first rule that matches its name, or is ``STEM`` and it is the stem's.

    Biases, normalisation weights and what timm's model names in ``no_weight_decay`` are in a rule's penalty or decay
    only where its ``biases_and_norms`` is ``in``. Several rules may name one group; a group that ``l2`` or ``decay``
    lacks has 0. ``layer_decay`` is the factor on the learning rate from one of timm's layers to the one below.

    Raises:
        UserError: a parameter that no rule matches, or a rule that no parameter is left for.
    """
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    # How many layers each parameter's is below the classifier's, as timm counts them.
    layers = _layers(model, coarse=False) if layer_decay is not None else ()
    depths = {name: depth for depth, layer in enumerate(layers) for name in layer}
    aliases, groups, matched = rule_names(model, classifier), dict[tuple[str, float], Group](), set[GroupRule]()
    stem = stem_layers(model)
    for name, parameter in model.named_parameters():
        is_stem = name.rpartition(".")[0] in stem
        rule = next((rule for rule in rules if _matches(rule, aliases[name], is_stem=is_stem)), None)
        if rule is None:
            raise UserError(f"finetune.groups: no rule matches the parameter {aliases[name]}; end with match: '.*'")
        matched.add(rule)
        undecayed = (parameter.ndim <= 1 or name in no_decay) and rule.biases_and_norms == "out"
        group = rule.name + NO_DECAY_SUFFIX * undecayed
        rate = lr[rule.name] * (layer_decay or 1.0) ** depths.get(name, 0)
        strengths = (0.0, 0.0) if undecayed else (l2.get(rule.name, 0.0), decay.get(rule.name, 0.0))
        groups.setdefault((group, rate), Group(group, *strengths, rate)).parameters[name] = parameter
    for rule in rules:
        if rule not in matched:
            raise UserError(
                f"finetune.groups: {rule.match!r} of the group {rule.name} matches no parameter that is left; "
                f"the names are {', '.join(list(aliases.values())[:3])} ..."
            )
    return list(groups.values())


def _matches(rule: GroupRule, alias: str, *, is_stem: bool) -> bool:
    return is_stem if rule.match == STEM else re.fullmatch(rule.match, alias) is not None


def backbone_stages(model: nn.Module, classifier: str) -> list[set[str]]:
    """Return the names of the parameters of the backbone's stages (timm's coarse layers), from the top down.

    A stage of normalisation alone is joined with the one below it. The classifier is in none.
    """
    stages: list[set[str]] = []
    only_norms = False
    backbone = backbone_parameters(model, classifier)
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    for layer in _layers(model, coarse=True):
        stage = backbone & set(layer)
        if not stage:
            continue
        if only_norms:
            stages[-1] |= stage
        else:
            stages.append(stage)
        only_norms = all(dimensions[name] <= 1 for name in stages[-1])
    return stages


def _layers(model: nn.Module, *, coarse: bool) -> Iterator[list[str]]:
    """Yield the names of the parameters of each of timm's layers, from the top down; one layer where timm has none."""
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
