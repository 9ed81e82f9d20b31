"""Writes keys of ``params.yaml`` as text, with their descriptions as comments."""

import inspect
import io
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from headstart.config.schema import Params
from headstart.config.section import ConfigSection

Keys = tuple[str, ...]
"""A key of ``params.yaml`` after those of the sections that hold it."""


def _descriptions(section: ConfigSection, parents: Keys = ()) -> Iterator[tuple[Keys, str]]:
    fields = type(section).model_fields.values()
    for (key, value), field in zip(section.values_by_key().items(), fields, strict=True):
        yield (*parents, key), field.description or inspect.getdoc(value) or ""
        if isinstance(value, ConfigSection):
            yield from _descriptions(value, (*parents, key))


DESCRIPTIONS = dict(_descriptions(Params()))
"""The description of every key: its own or else the docstring of the section that it holds."""


def yaml_lines(keys: Keys, value: Any, indent: int = 0, *, comments: bool = True) -> list[str]:
    """Return a key, which may be a free name, in YAML: its description, its value and what is nested in it."""
    lines = comment_lines(DESCRIPTIONS.get(keys, ""), indent) if comments else []
    name = f"{' ' * indent}{inline_yaml(keys[-1])}:"
    if isinstance(value, dict) and value:
        lines.append(name)
        for key, inner in value.items():
            lines += yaml_lines((*keys, key), inner, indent + 2, comments=comments)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        lines += [name, *(f"{' ' * indent}- {inline_yaml(item)}" for item in value)]
    else:
        lines.append(f"{name} {inline_yaml(value)}")
    return lines


def comment_lines(text: str, indent: int = 0) -> list[str]:
    """Return the lines of a text as comments in YAML."""
    return [f"{' ' * indent}# {line}".rstrip() for line in text.splitlines()]


def inline_yaml(value: Any) -> str:
    """Return a value in YAML on one line, small numbers as ``1e-4``, texts in quotes unless they are plain words."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.width = True, 10**6
    yaml.representer.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump({"value": value}, stream)
    return stream.getvalue().strip().removeprefix("{value: ").removesuffix("}")


class _Representer(SafeRepresenter):
    def represent_float(self, value: float) -> ScalarNode:
        if 0 < abs(value) < 0.01:
            return self.represent_scalar("tag:yaml.org,2002:float", f"{Decimal(repr(value)).normalize():e}")
        return super().represent_float(value)

    def represent_str(self, value: str) -> ScalarNode:
        quotes = "'" if value.isprintable() else '"'
        style = None if re.fullmatch(r"\w[\w./:-]*", value) else quotes
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def ignore_aliases(self, _: Any) -> bool:
        return True


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)
