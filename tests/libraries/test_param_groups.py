import re
from itertools import pairwise

import pytest
import timm
from torch import nn

from headstart.libraries.backbone import classifier, classifier_name
from headstart.libraries.param_groups import Rule, default_rules, group_parameters, table

MODELS = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
L2, LR = {"backbone": 1e-4, "head": 1e-3}, {"backbone": 0.01, "head": 0.1}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = timm.create_model(request.param, num_classes=5)
    return made


def rules(model: nn.Module, *, everything: bool) -> list[Rule]:
    return default_rules(model, classifier_name(model), l2=L2, lr=LR, l2_on_biases_and_norms=everything)


@pytest.mark.parametrize("everything", [False, True])
def test_every_parameter_is_in_exactly_one_group(*, model: nn.Module, everything: bool) -> None:
    groups = group_parameters(model, rules(model, everything=everything))
    grouped = [id(parameter) for group in groups for parameter in group.parameters.values()]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert sum(group.count for group in groups) == sum(parameter.numel() for parameter in model.parameters())
    names = dict(model.named_parameters())
    assert all(names[name] is parameter for group in groups for name, parameter in group.parameters.items())


def test_biases_and_norms_are_outside_the_penalty(model: nn.Module) -> None:
    groups = {group.name: group for group in group_parameters(model, rules(model, everything=False))}
    assert set(groups) == {"head_free", "backbone_free", "head", "backbone"}
    assert {name: (group.l2, group.lr) for name, group in groups.items()} == {
        "head_free": (0.0, 0.1),
        "backbone_free": (0.0, 0.01),
        "head": (1e-3, 0.1),
        "backbone": (1e-4, 0.01),
    }
    head = classifier(model)
    assert [id(p) for p in groups["head"].parameters.values()] == [id(head.weight)]
    assert [id(p) for p in groups["head_free"].parameters.values()] == [id(head.bias)]
    assert all(parameter.ndim > 1 for parameter in groups["backbone"].parameters.values())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    free = {id(parameter) for parameter in groups["backbone_free"].parameters.values()}
    assert all(id(parameter) in free for norm in norms for parameter in norm.parameters())


def test_biases_and_norms_are_in_the_penalty_where_asked(model: nn.Module) -> None:
    groups = {group.name: group for group in group_parameters(model, rules(model, everything=True))}
    assert set(groups) == {"head", "backbone"}
    assert {id(p) for p in groups["head"].parameters.values()} == {id(p) for p in classifier(model).parameters()}


def test_what_a_model_wants_undecayed_is_outside_the_penalty() -> None:
    model = timm.create_model("test_vit", num_classes=5)
    groups = {group.name: group for group in group_parameters(model, rules(model, everything=False))}
    assert {"pos_embed", "cls_token"} <= set(groups["backbone_free"].parameters)


def test_the_first_rule_that_matches_wins_and_matches_whole_names() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    first, second, rest = (
        Rule(r"0\.weight", "first", 0.1, 1.0),
        Rule(r"0\..*", "zero", 0.2, 1.0),
        Rule(".*", "rest", 0, 2),
    )
    groups = {group.name: list(group.parameters) for group in group_parameters(model, [first, second, rest])}
    assert groups == {"first": ["0.weight"], "zero": ["0.bias"], "rest": ["1.weight", "1.bias"]}
    groups = {group.name: list(group.parameters) for group in group_parameters(model, [second, first, rest])}
    assert groups == {"zero": ["0.weight", "0.bias"], "rest": ["1.weight", "1.bias"]}
    with pytest.raises(ValueError, match=re.escape("no rule for the parameter 0.weight")):
        group_parameters(model, [Rule(r"0\.w", "start", 0, 1), Rule("weight", "end", 0, 1)])


def test_a_parameter_without_a_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match=re.escape("1.bias")):
        group_parameters(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), [Rule(r"0\..*|1\.weight", "a", 0, 1)])


def test_a_name_with_a_dot_is_not_a_pattern() -> None:
    """fc.weight must not catch fcXweight, nor fc the layer fc2."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.fc2, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)

    groups = group_parameters(Odd(), default_rules(Odd(), "fc", l2=L2, lr=LR, l2_on_biases_and_norms=True))
    assert [list(group.parameters) for group in groups if group.name == "head"] == [["fc.weight", "fc.bias"]]


def test_the_table_shows_every_group(model: nn.Module) -> None:
    groups = group_parameters(model, rules(model, everything=False))
    rows = table(groups)
    assert [row["group"] for row in rows] == [group.name for group in groups]
    assert sum(int(row["parameters"]) for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert all(
        row["l2"] == group.l2 and row["tensors"] == len(group.parameters)
        for row, group in zip(rows, groups, strict=True)
    )
    assert all(one["group"] != other["group"] for one, other in pairwise(rows))
