"""Reads ``params.yaml`` as DVC parses it (YAML 1.2, so that ``1e-4`` is a number) and explains what is wrong in it."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from headstart.config.schema import Params
from headstart.config.section import ConfigSection
from headstart.core.errors import UserError


def load_params(path: Path, *, partial: bool = False) -> Params:
    """Read and check ``params.yaml``.

    Args:
        path: the file.
        partial: whether keys may be missing; they have their defaults. DVC needs a file that is complete.

    Raises:
        UserError: the file is missing or is not YAML, or a key is missing, unknown or has a value that is not allowed;
            all of them are listed, each with its value, what is allowed and, for a typo, the nearest key.
    """
    return parse_params(read_sections(path), str(path), partial=partial)


def read_sections(path: Path) -> dict[str, Any]:
    """Read a file of params, complete or not, without checking its keys; raises UserError if it has no sections."""
    try:
        content = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run this in the project's folder") from None
    except YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold the sections {', '.join(Params.model_fields)}")
    return content


def parse_params(content: Mapping[str, Any], name: str = "params.yaml", *, partial: bool = False) -> Params:
    """Check the content of ``params.yaml``; raises UserError as ``load_params`` does."""
    missing = [] if partial else list(_missing(content, Params()))
    problems, params = [], None
    try:
        params = Params.model_validate(with_defaults(content))
    except ValidationError as error:
        problems = [_explanation(problem) for problem in _without_union_branches(error)]
    if missing:
        command = "headstart params" if name == "params.yaml" else f"headstart params --params {name}"
        problems.append(
            f"  {', '.join(missing)}: missing; add {'it' if len(missing) == 1 else 'them'} with `{command}`"
        )
    if params is None or problems:
        raise UserError("\n".join([f"{name}:", *problems]))
    return params


def with_defaults(content: Mapping[str, Any], defaults: ConfigSection | None = None) -> dict[str, Any]:
    """Return the content of ``params.yaml`` with the keys that it lacks; what stands there stays, right or wrong.

    The numbers by group (``lr``, ``decay`` and the λ of ``l2``) stay as they are, for the groups may be others.

    Args:
        content: all sections, or the keys of one.
        defaults: the same section with its defaults; None for ``Params()``.
    """
    defaults = defaults or Params()
    filled = {**content}
    for key, value in defaults.values_by_key().items():
        if key not in content:
            filled[key] = defaults.model_dump()[key]
        elif isinstance(value, ConfigSection) and isinstance(content[key], dict):
            filled[key] = with_defaults(content[key], value)
    return filled


def _missing(content: Mapping[str, Any], defaults: ConfigSection) -> Iterator[str]:
    """Return the dotted names of the keys that ``with_defaults`` would add."""
    for key, value in defaults.values_by_key().items():
        if key not in content:
            yield key
        elif isinstance(value, ConfigSection) and isinstance(content[key], dict):
            yield from (f"{key}.{name}" for name in _missing(content[key], value))


def _without_union_branches(error: ValidationError) -> list[Mapping[str, Any]]:
    """Merge the problems that pydantic lists for each member of a union into one per key."""
    merged: dict[str, dict[str, Any]] = {}
    for problem in error.errors():
        key, _ = _locate(problem["loc"])
        if key in merged:
            merged[key]["msg"] += f"; or {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        else:
            merged[key] = {**problem}
    return list(merged.values())


def _locate(location: tuple[int | str, ...]) -> tuple[str, type[ConfigSection]]:
    """Return the dotted key of a pydantic location, and the section that holds the key."""
    names: list[str] = []
    section: type[ConfigSection] = Params
    annotation: Any = Params
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
            annotation = next(iter(get_args(annotation)), None)
        elif isinstance(annotation, type) and issubclass(annotation, ConfigSection):
            names.append(part)
            section = annotation
            annotation = section.model_fields[part].annotation if part in section.model_fields else None
        else:  # the rest names members of a union
            break
    return ".".join(names), section


def _explanation(problem: Mapping[str, Any]) -> str:
    """Return one line for the user about a problem that pydantic found."""
    key, section = _locate(problem["loc"])
    if problem["type"] == "extra_forbidden":
        name, known = key.rpartition(".")[2], list(section.fields_by_key())
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known keys: {', '.join(known)}"
        return f"  {key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"  {key}: missing; add it"
    shown = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"  {key or 'the file'}: {problem['msg'].removeprefix('Value error, ')}{shown}"
