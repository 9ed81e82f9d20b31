import re

import pytest
import timm
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from headstart.config.finetune import GroupRule
from headstart.core.errors import UserError
from headstart.models.backbone import get_head, head_name
from headstart.training.regularization.param_groups import (
    Group,
    backbone_stages,
    group_parameters,
    groups_table,
    rule_names,
)

MODELS = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
L2, LR = {"backbone": 1e-4, "head": 1e-3}, {"backbone": 0.01, "head": 0.1}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = timm.create_model(request.param, num_classes=5)
    return made


def rule(match: str, name: str, *, everything: bool = True) -> GroupRule:
    return GroupRule(match=match, name=name, biases_and_norms="in" if everything else "out")


def grouped(model: nn.Module, *, everything: bool = False, layer_decay: float | None = None) -> list[Group]:
    """The rules of params.yaml."""
    rules = [rule(r"head\..*", "head", everything=everything), rule(".*", "backbone", everything=everything)]
    return group_parameters(model, head_name(model), rules, lr=LR, l2=L2, decay={}, layer_decay=layer_decay)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_exactly_one_group(
    *, model: nn.Module, everything: bool, layer_decay: float | None
) -> None:
    groups = grouped(model, everything=everything, layer_decay=layer_decay)
    found = [id(parameter) for group in groups for parameter in group.parameters.values()]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert sum(group.count for group in groups) == sum(parameter.numel() for parameter in model.parameters())
    names = dict(model.named_parameters())
    assert all(names[name] is parameter for group in groups for name, parameter in group.parameters.items())


def test_biases_and_norms_are_outside_the_penalty(model: nn.Module) -> None:
    groups = {group.name: group for group in grouped(model)}
    assert {name: (group.l2, group.lr) for name, group in groups.items()} == {
        "head_free": (0.0, 0.1),
        "backbone_free": (0.0, 0.01),
        "head": (1e-3, 0.1),
        "backbone": (1e-4, 0.01),
    }
    head = get_head(model)
    assert [id(p) for p in groups["head"].parameters.values()] == [id(head.weight)]
    assert [id(p) for p in groups["head_free"].parameters.values()] == [id(head.bias)]
    assert all(parameter.ndim > 1 for parameter in groups["backbone"].parameters.values())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    free = {id(parameter) for parameter in groups["backbone_free"].parameters.values()}
    assert all(id(parameter) in free for norm in norms for parameter in norm.parameters())


def test_biases_and_norms_are_in_the_penalty_where_asked(model: nn.Module) -> None:
    groups = {group.name: group for group in grouped(model, everything=True)}
    assert set(groups) == {"head", "backbone"}
    assert {id(p) for p in groups["head"].parameters.values()} == {id(p) for p in get_head(model).parameters()}


def test_what_a_model_wants_undecayed_is_outside_the_penalty() -> None:
    groups = {group.name: group for group in grouped(timm.create_model("test_vit", num_classes=5))}
    assert {"pos_embed", "cls_token"} <= set(groups["backbone_free"].parameters)


@pytest.mark.parametrize("name", MODELS)
def test_layer_wise_learning_rates_are_timms(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    scale: dict[int, float] = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scale |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    head = {id(parameter) for parameter in get_head(model).parameters()}
    for group in grouped(model, layer_decay=0.5):
        for parameter in group.parameters.values():
            expected = 0.1 if id(parameter) in head else 0.01 * scale[id(parameter)]
            assert group.lr == pytest.approx(expected, rel=1e-9)


def test_rules_see_the_classifier_as_head_whatever_timm_calls_it(model: nn.Module) -> None:
    names = rule_names(model, head_name(model))
    assert {role for role in names.values() if role.startswith("head.")} == {"head.weight", "head.bias"}
    assert all(role in {f"backbone.{name}", "head.weight", "head.bias"} for name, role in names.items())


@pytest.mark.parametrize(
    ("name", "layers"),
    [("test_vit", ["patch_embed.proj"]), ("repvgg_a0", ["stem.conv_kxk.conv", "stem.conv_1x1.conv"])],
)
def test_a_rule_can_name_the_stem_whatever_timm_calls_it(name: str, layers: list[str]) -> None:
    model = timm.create_model(name, num_classes=5, in_chans=4)
    rules = [rule("stem", "first"), rule(r"head\..*", "head"), rule(".*", "backbone")]
    lr = {**LR, "first": 0.5}
    groups = {each.name: each for each in group_parameters(model, head_name(model), rules, lr=lr, l2=L2, decay={})}
    expected = [key for key in dict(model.named_parameters()) if key.rpartition(".")[0] in layers]
    assert list(groups["first"].parameters) == expected
    assert groups["first"].lr == 0.5
    assert len(expected) >= len(layers)
    counts = sum(group.count for group in groups.values())
    assert counts == sum(parameter.numel() for parameter in model.parameters())
    for late in ([rules[2], rules[0]], [rule("stem.*", "first"), rules[2]]):  # nothing is left, and no name is that
        with pytest.raises(UserError, match="of the group first matches no parameter that is left"):
            group_parameters(model, head_name(model), late, lr=lr, l2=L2, decay={})


def test_the_first_rule_that_matches_wins_and_matches_whole_names() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))

    def names(*rules: GroupRule) -> dict[str, list[str]]:
        made = group_parameters(model, "1", rules, lr=dict.fromkeys("abc", 1.0), l2={"a": 0.1}, decay={"b": 0.2})
        assert {group.name: (group.l2, group.decay) for group in made} == {
            name: numbers
            for name, numbers in {"a": (0.1, 0), "b": (0, 0.2), "c": (0, 0)}.items()
            if name in found(made)
        }
        return found(made)

    def found(groups: list[Group]) -> dict[str, list[str]]:
        return {group.name: list(group.parameters) for group in groups}

    first, second, rest = (
        rule(r"backbone\.0\.weight", "a"),
        rule(r"backbone\..*", "b"),
        rule(".*", "c"),
    )
    assert names(first, second, rest) == {"a": ["0.weight"], "b": ["0.bias"], "c": ["1.weight", "1.bias"]}
    assert names(second, rest) == {"b": ["0.weight", "0.bias"], "c": ["1.weight", "1.bias"]}
    with pytest.raises(UserError, match="group a matches no parameter that is left"):
        names(second, first, rest)
    with pytest.raises(UserError, match=re.escape("no rule matches the parameter head.weight")):
        names(first, second)
    with pytest.raises(UserError, match=re.escape("no rule matches the parameter backbone.0.weight")):
        names(rule(r"backbone\.0\.w", "a"), rule("weight", "b"))


def test_a_name_with_a_dot_is_not_a_pattern() -> None:
    """The classifier fc is not the layer fc2."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.fc2, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)

    assert [name for name, role in rule_names(Odd(), "fc").items() if role.startswith("head.")] == [
        "fc.weight",
        "fc.bias",
    ]


def test_stages_go_from_the_top_down_and_leave_nothing_out(model: nn.Module) -> None:
    found = backbone_stages(model, head_name(model))
    names = [name for stage in found for name in stage]
    backbone = [n for n, role in rule_names(model, head_name(model)).items() if role.startswith("backbone.")]
    assert sorted(names) == sorted(backbone)
    assert len(found) > 2
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert all(any(shapes[name] > 1 for name in stage) for stage in found)
    inputs = next(
        name for name, parameter in model.named_parameters() if parameter.ndim == 4 and parameter.shape[1] == 3
    )
    assert inputs in found[-1]


def test_the_table_shows_every_group(model: nn.Module) -> None:
    groups = grouped(model)
    rows = groups_table(groups)
    assert [row["group"] for row in rows] == [group.name for group in groups]
    assert sum(int(row["parameters"]) for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert all(
        row["l2"] == group.l2 and row["tensors"] == len(group.parameters)
        for row, group in zip(rows, groups, strict=True)
    )
