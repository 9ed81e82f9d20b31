"""Reads ``params.yaml`` as DVC parses it (YAML 1.2, so that ``1e-4`` is a number) and explains what is wrong in it."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from headstart.config.schema import Params
from headstart.core.errors import UserError


def load_params(path: Path) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        UserError: the file is missing or is not YAML, or a key is missing, unknown or has a value that is not allowed;
            all of them are listed, each with what stood there, what is allowed and, for a typo, the nearest key.
    """
    try:
        content = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run this in the project's folder") from None
    except YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return parse_params(content, str(path))


def parse_params(content: Any, name: str = "params.yaml") -> Params:
    """Check the content of ``params.yaml``; raises UserError as ``load_params`` does."""
    if not isinstance(content, dict):
        raise UserError(f"{name} must hold the sections {', '.join(Params.model_fields)}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_explained(problem, content) for problem in _without_union_branches(error)]
        raise UserError("\n".join([f"{name}:", *lines])) from error


def _without_union_branches(error: ValidationError) -> list[Mapping[str, Any]]:
    """Merge the problems that pydantic lists for each member of a union into one a key."""
    merged: dict[str, dict[str, Any]] = {}
    for problem in error.errors():
        key = _key(problem["loc"])
        if key in merged:
            merged[key]["msg"] += f"; or {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        else:
            merged[key] = {**problem}
    return list(merged.values())


def _key(location: tuple[int | str, ...]) -> str:
    """Return the dotted key of a pydantic location, without the names of union members, which are no keys."""
    names: list[str] = []
    section: Any = Params
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
            continue
        fields = getattr(section, "model_fields", None)
        if fields is None:
            break
        names.append(part)
        section = fields[part].annotation if part in fields else None
    return ".".join(names)


def _explained(problem: Mapping[str, Any], content: Any) -> str:
    """Write one problem for a user."""
    key = _key(problem["loc"])
    if problem["type"] == "extra_forbidden":
        parent, _, name = key.rpartition(".")
        known = [field.alias or name for name, field in (_fields(parent) if parent else Params.model_fields).items()]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known keys: {', '.join(known)}"
        return f"  {key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"  {key}: missing; add it (the project's params.yaml shows every key with a comment)"
    shown = "" if content is None or isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"  {key or 'the file'}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def _fields(parent: str) -> Mapping[str, FieldInfo]:
    """Return the fields of a dotted section."""
    section: Any = Params
    for part in parent.split("."):
        section = section.model_fields[part].annotation
    fields: Mapping[str, FieldInfo] = section.model_fields
    return fields
