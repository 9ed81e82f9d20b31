"""Reads ``params.yaml`` as DVC parses it (YAML 1.2, so that ``1e-4`` is a number) and explains what is wrong in it."""

import difflib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from headstart.config.schema import Params
from headstart.config.section import ConfigSection
from headstart.core.errors import UserError, first_line
from headstart.core.problems import list_problems, some


def load_params(path: Path, *, partial: bool = False) -> Params:
    """Read and check ``params.yaml``; if ``partial``, missing keys have their defaults (DVC needs all keys).

    Raises:
        UserError: the file is missing or is not YAML, or a key is missing, unknown or has a value that is not allowed;
            all of them are listed, each with its value, what is allowed and, for a typo, the nearest key.
    """
    return parse_params(read_sections(path), str(path), partial=partial)


def read_sections(path: Path) -> dict[str, Any]:
    """Read a file of params, complete or not, without checking its keys; raises UserError if it has no sections."""
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8-sig"))  # as DVC, and with what Notepad adds
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run this in the project's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML in UTF-8 ({error}): save it in that encoding") from error
    except YAMLError as error:
        place, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        where = f"line {place.line + 1}: " if place else ""
        raise UserError(f"{path} is not YAML: {where}{problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold the sections {', '.join(Params.model_fields)}")
    return content


def parse_params(content: Mapping[str, Any], name: str = "params.yaml", *, partial: bool = False) -> Params:
    """Check the content of ``params.yaml``; raises UserError as ``load_params`` does."""
    filled, missing = with_defaults(content)
    problems: list[tuple[str, str]] = []
    try:
        params = Params.model_validate(filled)
    except ValidationError as error:
        # One line per key: pydantic lists the problem with each member of a union.
        by_key = groupby(error.errors(), key=lambda problem: _locate(problem["loc"]))
        problems = [_explanation(key, section, list(group)) for (key, section), group in by_key]
    if missing and not partial:
        command = "headstart params" if name == "params.yaml" else f"headstart params --params {name}"
        problems.append((some(missing), f"missing; add {'it' if len(missing) == 1 else 'them'} with `{command}`"))
    if problems:
        raise UserError(list_problems(f"{name}:", problems))
    return params


def with_defaults(
    content: Mapping[str, Any], defaults: ConfigSection | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return a section's content in the schema's order with the keys that it lacked, and the dotted names of those.

    What stands there stays, right or wrong, and so do the numbers by group (``lr``, ``decay`` and the λ of ``l2``), for
    the groups may be others. ``defaults`` is the section with its defaults; None for all of ``params.yaml``.
    """
    defaults = defaults or Params()
    filled, missing = {}, []
    for key, value in defaults.values_by_key().items():
        if key not in content:
            filled[key] = defaults.model_dump()[key]
            missing.append(key)
        elif isinstance(value, ConfigSection) and isinstance(content[key], dict):
            filled[key], nested = with_defaults(content[key], value)
            missing += [f"{key}.{name}" for name in nested]
        else:
            filled[key] = content[key]
    return {**filled, **content, **filled}, missing  # the other keys of the content, unknown ones or groups, at the end


def _locate(location: tuple[int | str, ...]) -> tuple[str, ConfigSection]:
    """Return the dotted key of a pydantic location, and the section that holds the key, with its defaults."""
    names = []
    section: ConfigSection = Params()
    value: Any = section
    for part in location:
        if isinstance(part, int):
            value = value[0] if isinstance(value, list) else None
        elif isinstance(value, ConfigSection):
            section, value = value, value.values_by_key().get(part)
        else:  # the rest names members of a union
            break
        names.append(str(part))
    return ".".join(names), section


def _explanation(key: str, section: ConfigSection, problems: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a key, and in a line for the user what pydantic found wrong with it."""
    kind, value = problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        known = list(section.values_by_key())
        nearest = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return key, f"unknown key; {hint}"
    if kind == "missing":
        return key, "missing; add it"
    if kind == "list_type" and len(problems) == 1 and isinstance(value, str | int | float):
        return key, f"a list is wanted: {json.dumps([value], ensure_ascii=False)}"
    first, *others = (problem["msg"].removeprefix("Value error, ") for problem in problems)
    message = "; or ".join([first, *(f"{other[:1].lower()}{other[1:]}" for other in others)])
    shown = "" if isinstance(value, dict) else f" (got {value!r})"
    return key or "the file", f"{message}{shown}"
