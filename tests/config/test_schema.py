from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from headstart.config.loader import load_params, parse_params
from headstart.config.schema import Params
from headstart.core.errors import UserError

COMMITTED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def content() -> Any:
    return YAML(typ="safe").load(COMMITTED)


@pytest.fixture
def params() -> Params:
    return load_params(COMMITTED)


def place(content: Any, key: str) -> tuple[Any, str]:
    """The section that holds a dotted key, and the key's last part."""
    *path, name = key.split(".")
    for part in path:
        content = content[part]
    return content, name


def refusal(content: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_params(content)
    return str(caught.value)


def test_the_committed_file_is_complete_and_its_numbers_are_numbers(params: Params) -> None:
    l2 = params.finetune.l2.by_group
    assert l2 == {"backbone": 1e-4, "head": 1e-3}  # PyYAML would read the text "1e-4"
    assert (type(l2["backbone"]), type(params.probe.l2[-1])) == (float, float)
    assert (params.prepare.source, params.run.resume, params.finetune.clip) == ("digits", True, None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("finetune.epochs", "20", ["valid integer", "'20'"]),
        ("finetune.epochs", 0, ["greater than or equal to 1", "got 0"]),
        ("finetune.epochs", True, ["valid integer", "True"]),
        ("finetune.epochs", 2.5, ["valid integer", "2.5"]),
        ("finetune.optimizer", "rmsprop", ["'sgd', 'adam' or 'adamw'", "'rmsprop'"]),
        ("finetune.recipe", "freeze", ["'lp_ft', 'full', 'head_first' or 'gradual'", "'freeze'"]),
        ("finetune.l2.kind", "sp", ["'l2', 'l2_sp', 'decoupled' or 'none'", "'sp'"]),
        ("finetune.l2.head", "1e-3", ["valid number", "'1e-3'"]),
        ("finetune.early_stopping.monitor", "loss", ["'val_loss' or 'val_accuracy'", "'loss'"]),
        ("finetune.l2.head", float("nan"), ["finite number", "nan"]),
        ("finetune.l2.head", -1e-3, ["greater than or equal to 0", "-0.001"]),
        ("finetune.ema", 1.0, ["less than 1", "1.0"]),
        ("finetune.augment.scale", [0.5], ["at least 2 items", "[0.5]"]),
        ("finetune.lr", 0.01, ["0.01"]),
        ("finetune.layer_decay", 1.5, ["less than or equal to 1", "1.5"]),
        ("finetune.groups", [], ["at least 1 item", "[]"]),
        ("backbone.image_size", 4, ["greater than or equal to 8", "got 4"]),
        ("backbone.name", 50, ["valid string", "50"]),
        ("backbone.args", "none", ["valid dictionary", "'none'"]),
        ("prepare.source", "zip:x", ["digits|imagefolder", "'zip:x'"]),
        ("prepare.split.test", 1.5, ["less than 1", "1.5"]),
        ("probe.l2", [], ["at least 1 item", "[]"]),
        ("run.devices", "all", ["'auto'", "valid integer", "'all'"]),
        ("run.workers", -1, ["'auto'", "greater than or equal to 0", "-1"]),
        ("run.resume", "yes", ["valid boolean", "'yes'"]),  # YAML 1.2 has no yes and no
        ("export.tolerance", 0.0, ["greater than 0", "0.0"]),
    ],
)
def test_a_wrong_value_is_named_with_what_stood_there_and_what_is_allowed(
    content: Any, key: str, value: Any, said: list[str]
) -> None:
    section, name = place(content, key)
    section[name] = value
    first, *problems = refusal(content).splitlines()
    assert first == "params.yaml:"
    assert len(problems) == 1  # one line a key, however many types it may have
    assert problems[0].startswith(f"  {key}: ")
    for part in said:
        assert part in problems[0]


def test_a_value_where_a_list_is_wanted_is_shown_as_one(content: Any) -> None:
    content["prepare"]["target_columns"] = "tags"
    assert '  prepare.target_columns: a list is wanted: ["tags"]' in refusal(content)


def test_the_item_of_a_list_is_named(content: Any) -> None:
    content["probe"]["l2"] = [1.0, 0.1, 0.0]
    assert "  probe.l2.2: " in refusal(content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"finetune.recipe": "head_first", "finetune.phase_epochs": 20, "finetune.epochs": 20},
            "  finetune: phase_epochs (20) must be less than epochs (20)",
        ),
        (
            {"finetune.optimizer": "sgd", "finetune.momentum": 0.0},
            "  finetune: nesterov looks ahead along the momentum, which is 0",
        ),
        ({"finetune.l2.haed": 1e-3}, "  finetune: l2.haed: no such group; finetune.groups names backbone, head"),
        ({"finetune.l2.head": None}, "  finetune: l2.head: missing; each of the groups (backbone, head) needs one"),
        ({"finetune.lr": {"head": 0.1}}, "  finetune: lr.backbone: missing"),
        (
            {"finetune.l2.kind": "decoupled", "finetune.optimizer": "adamw"},
            "  finetune: l2.backbone: decoupled decay is no λ and has its own unit",
        ),
        ({"finetune.decay.head": 0.1}, "  finetune: decay.head: only l2.kind: decoupled reads it, and that is l2"),
        (
            {
                "finetune.optimizer": "sgd",
                "finetune.l2": {"kind": "decoupled"},
                "finetune.decay": {"head": 0.1},
            },
            "  finetune: decay.backbone: missing",
        ),
        (
            {"finetune.l2": {"kind": "decoupled"}, "finetune.optimizer": "adam"},
            "  finetune: l2.kind: Adam has no decoupled decay; use optimizer: adamw",
        ),
        (
            {"finetune.l2.kind": "l2_sp", "backbone.pretrained": False},
            "l2_sp stays near pretrained weights: set backbone.pretrained: true",
        ),
        (
            {"finetune.groups": [{"name": "kind", "match": ".*", "biases_and_norms": "in"}]},
            "  finetune: groups: kind is taken",
        ),
        (
            {"finetune.groups": [{"name": "a_free", "match": ".*", "biases_and_norms": "in"}]},
            "  finetune: groups: a_free: _free ends the names",
        ),
        (
            {"finetune.groups": [{"name": "all", "match": "(", "biases_and_norms": "in"}]},
            "is no regular expression: missing )",
        ),
        ({"finetune.accumulate": 65}, "  finetune: accumulate (65) must not exceed batch_size (64)"),
        (
            {"prepare.split.validation": 0.5, "prepare.split.test": 0.5},
            "  prepare.split: validation and test must leave",
        ),
    ],
)
def test_values_that_exclude_each_other_are_refused(content: Any, changes: dict[str, Any], said: str) -> None:
    for key, value in changes.items():
        section, name = place(content, key)
        section[name] = value
    assert said in refusal(content)


@pytest.mark.parametrize(
    ("key", "typo"),
    [
        ("finetune.epochs", "epoch"),
        ("finetune.early_stopping.patience", "patince"),
        ("finetune.batch_size", "batchsize"),
        ("evaluate", "evalute"),
    ],
)
def test_a_typo_gets_the_nearest_key(content: Any, key: str, typo: str) -> None:
    section, name = place(content, key)
    section[typo] = section.pop(name)
    problems = refusal(content).splitlines()
    written = ".".join([*key.split(".")[:-1], typo])
    assert f"  {written}: unknown key; did you mean {name!r}?" in problems
    assert any(line.startswith(f"  {key}: missing; add it") for line in problems)


def test_an_unknown_key_with_no_near_one_gets_all_known_keys(content: Any) -> None:
    content["evaluate"]["zzz"] = 1
    assert "  evaluate.zzz: unknown key; known keys: batch_size, top_k" in refusal(content)


@pytest.mark.parametrize("section", list(Params.model_fields))
def test_a_missing_section_or_one_that_is_no_section_is_named(content: Any, section: str) -> None:
    content[section] = 3
    assert f"  {section}: " in refusal(content)
    del content[section]
    assert f"  {section}: missing" in refusal(content)


def test_all_problems_are_listed_at_once(content: Any) -> None:
    content["finetune"]["epochs"] = 0
    content["probe"]["l2"] = "small"
    content["run"]["tracing"] = "offline"
    del content["export"]["license"]
    problems = refusal(content).splitlines()[1:]
    assert sorted(line.split(":")[0].strip() for line in problems) == [
        "export.license",
        "finetune.epochs",
        "probe.l2",
        "run.tracing",
    ]


def test_missing_keys_are_named_in_one_line_with_the_command_that_adds_them(content: Any) -> None:
    del content["finetune"]["ema"], content["finetune"]["augment"]["mixup"], content["evaluate"]
    assert refusal(content).splitlines() == [
        "params.yaml:",
        "  finetune.ema, finetune.augment.mixup, evaluate: missing; add them with `headstart params`",
    ]
    with pytest.raises(UserError, match=r"add them with `headstart params --params old/mine\.yaml`"):
        parse_params(content, "old/mine.yaml")


def test_the_defaults_are_the_committed_file(params: Params) -> None:
    assert Params() == params
    assert Params.model_validate(Params().model_dump()) == params  # pydantic does not check defaults by itself


def test_a_partial_file_has_the_defaults_elsewhere(content: Any) -> None:
    text = {"finetune": {"epochs": 3, "augment": {"hflip": 0.5}}, "export": {"int8": {"agreement": 0.9}}}
    params = parse_params(text, partial=True)
    content["finetune"]["epochs"], content["finetune"]["augment"]["hflip"] = 3, 0.5
    content["export"]["int8"]["agreement"] = 0.9
    assert params == parse_params(content)
    with pytest.raises(UserError, match=r"finetune.epoch: unknown key; did you mean 'epochs'\?"):
        parse_params({"finetune": {"epoch": 3}}, partial=True)


def test_a_partial_file_with_its_own_groups_gets_no_numbers_of_the_default_ones() -> None:
    groups = [{"name": "all", "match": ".*", "biases_and_norms": "in"}]
    finetune: Any = {"groups": groups, "lr": {"all": 0.1}, "l2": {"all": 1e-4}}
    params = parse_params({"finetune": finetune}, partial=True)
    assert (params.finetune.lr, params.finetune.l2.by_group) == ({"all": 0.1}, {"all": 1e-4})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nmae": "x"}, "  finetune.groups.0.nmae: unknown key; did you mean 'name'?"),
        ({"biases_and_norms": "on"}, "  finetune.groups.0.biases_and_norms: Input should be 'in' or 'out' (got 'on')"),
        ({"match": None}, "  finetune.groups.0.match: "),
        ({}, "  finetune.groups.0.name: missing; add it"),
    ],
)
def test_a_key_of_a_group_is_named(content: Any, change: dict[str, Any], said: str) -> None:
    group = content["finetune"]["groups"][0]
    group.update(change)
    if not change:
        del group["name"]
    assert any(line.startswith(said) for line in refusal(content).splitlines())


def test_a_whole_number_is_a_number(content: Any) -> None:
    content["finetune"]["lr"]["head"] = 1
    assert parse_params(content).finetune.lr["head"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "must hold the sections prepare, backbone"),
        (b"# only a comment\n", "must hold the sections"),
        (b"- prepare\n- features\n", "must hold the sections"),
        (b"prepare: [1, 2\n", "is not YAML: line 2"),
        (b"run: {}\nrun: {}\n", "is not YAML: line 2: found duplicate key"),
        (b"prepare: \xff\xff", "is not YAML in UTF-8 .*: save it in that encoding"),
        (b"prepare: \x07", "is not YAML: unacceptable character"),
        (b"run:\n\tworkers: 0\n", "is not YAML: line 2"),
        (b'run:\n  cache: "x\n', "is not YAML: line"),
        (b"run: {}\n---\nrun: {}\n", "is not YAML: line 2"),
        (b"run: {cache: !!python/object:os.system x}\n", "is not YAML: line 1: could not determine a constructor"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused_by_name(tmp_path: Path, text: bytes | None, said: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=said) as caught:
        load_params(path)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_params_are_immutable(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.finetune.epochs = 1
    with pytest.raises(ValidationError, match="frozen"):
        params.finetune.l2.kind = "none"


def test_declared_gives_what_is_declared_and_run(params: Params) -> None:
    seen = params.declared(["probe", "backbone.name", "backbone.seed"])
    assert seen.probe == params.probe
    assert (seen.backbone.name, seen.backbone.seed) == (params.backbone.name, params.backbone.seed)
    assert seen.run == params.run
    assert set(seen.model_dump()) == {"probe", "backbone", "run"}
    assert set(seen.model_dump()["backbone"]) == {"name", "seed"}


def test_declared_refuses_every_other_key_by_name(params: Params) -> None:
    seen = params.declared(["probe", "backbone.name"])
    for section in set(Params.model_fields) - {"probe", "backbone", "run"}:
        with pytest.raises(AttributeError, match=rf"\.{section} but does not declare it"):
            getattr(seen, section)
    for key in set(type(params.backbone).model_fields) - {"name"}:
        with pytest.raises(AttributeError, match=rf"backbone\.{key} but does not declare it"):
            getattr(seen.backbone, key)
    with pytest.raises(AttributeError, match="nmae"):
        params.declared(["backbone.nmae"])
