"""The committed params.yaml and docs/params.md are what the schema generates."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import make_params
from headstart.config.schema import Params
from headstart.config.section import ConfigSection
from headstart.config.writer import inline_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "generated"),
    [("params.yaml", make_params.params_yaml), ("docs/params.md", make_params.params_markdown)],
)
def test_what_is_committed_is_current(name: str, generated: Any) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == generated(), f"make it anew: {make_params.COMMAND}"


def test_the_command_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROOT / make_params.COMMAND.removeprefix("python ") == Path(make_params.__file__)
    monkeypatch.chdir(tmp_path)
    make_params.main()
    assert Path("params.yaml").read_text(encoding="utf-8") == make_params.params_yaml()
    assert Path("docs/params.md").read_text(encoding="utf-8") == make_params.params_markdown()


def keys(section: type[ConfigSection], parents: str = "") -> Iterator[tuple[str, str | None]]:
    """Every dotted key below a section, with its description."""
    for name, field in section.model_fields.items():
        key, inner = f"{parents}{field.alias or name}", field.annotation
        if isinstance(inner, type) and issubclass(inner, ConfigSection):
            yield key, field.description or inner.__doc__
            yield from keys(inner, f"{key}.")
        else:
            yield key, field.description


@pytest.mark.parametrize(("key", "description"), list(keys(Params)))
def test_every_key_has_a_description_and_the_docs_have_it(key: str, description: str | None) -> None:
    assert description
    headings = re.findall(r"^#+ (.+)$", make_params.params_markdown(), re.MULTILINE)
    assert headings.count(key) == 1


def test_the_docs_say_the_allowed_values_and_the_default() -> None:
    docs = make_params.params_markdown()
    for said in (
        "### finetune.optimizer\n\n`sgd` or `adam` or `adamw`. Default: `adam`.\n",
        "### run.workers\n\n`auto` or integer ≥ 0. Default: `auto`.\n",
        "### finetune.layer_decay\n\nNumber > 0 and ≤ 1 or `null`. Default: `null`.\n",
        "### finetune.augment.scale\n\nList of 2 (number > 0 and ≤ 1). Default: `[0.6, 1.0]`.\n",
        "### finetune.l2.backbone\n\nNumber ≥ 0 or `null`. Default: `1e-4`.\n",
        "### finetune.lr\n\nMapping of names to (`auto` or number ≥ 0). Default: `{backbone: auto, head: auto}`.\n",
        "### export.from\n\n`finetune` or `probe`. Default: `finetune`.\n",
        "### backbone.pretrained\n\n`true` or `false`. Default: `true`.\n",
    ):
        assert said in docs


def test_generated_lines_are_no_longer_than_others() -> None:
    assert max(map(len, make_params.params_yaml().splitlines())) <= 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (3e-6, "3e-6"),
        (1.5e-3, "1.5e-3"),
        (1e-20, "1e-20"),
        (-2e-5, "-2e-5"),
        (0.01, "0.01"),
        (0.0, "0.0"),
        (1.0, "1.0"),
        (1e22, "1e+22"),
        (10, "10"),
        (None, "null"),
        (True, "true"),
        ("true", "'true'"),
        ("1e-4", "'1e-4'"),
        ("null", "'null'"),
        ("", "''"),
        ("csv:a b.csv", "'csv:a b.csv'"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("it's: #1", "'it''s: #1'"),
        (r"head\..*", r"'head\..*'"),
        ("two\nlines", '"two\\nlines"'),
        ("Käse", "Käse"),
        ({}, "{}"),
        ([], "[]"),
        ({"x": 1}, "{x: 1}"),
        ({"b": [1, {"c": None}], "a": 2}, None),
        ([1.0, 1e-3], "[1.0, 1e-3]"),
    ],
)
def test_a_value_is_written_as_it_is_read(value: Any, text: str | None) -> None:
    written = inline_yaml(value)
    read = YAML(typ="safe").load(f"key: {written}\nlist: [{written}]\n")
    assert read == {"key": value, "list": [value]}
    assert type(read["key"]) is type(value)
    assert text is None or written == text
    assert "\n" not in written
