"""Adds the keys that a ``params.yaml`` lacks and lays an overlay over it; the rest of the file stays as it is.

The file is edited as text, at the positions that ruamel gives. Its own round trip keeps a comment with the value above,
and so would insert a key between the next one and its comment, and lose the comment with a list that is replaced.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from headstart.config.loader import parse_params, read_sections, with_defaults
from headstart.config.reference import inline_yaml, section_of, yaml_lines
from headstart.config.schema import Params
from headstart.config.section import ConfigSection
from headstart.core.errors import UserError
from headstart.core.io import atomic_write

WHOLE = {"args", "class_map"}
"""Keys whose mappings an overlay replaces: what they hold is of one backbone."""


class _Edit(NamedTuple):
    """Text for the place from ``start`` to ``end``, and what it changes, for the user."""

    start: int
    end: int
    text: str
    change: str


def complete_params(path: Path, overlay: Path | None = None) -> list[str]:
    """Add the missing keys to a ``params.yaml`` with their comments, and take over the values of an overlay.

    The values by group (``lr``, ``decay``, ``l2``) are merged with the file's, lists are replaced. The file is written
    atomically, and not touched if nothing changes.

    Args:
        path: the ``params.yaml``.
        overlay: a file with some of the keys, such as a recipe.

    Returns:
        One line for each key that is added or changed.

    Raises:
        UserError: a file is missing, is not YAML, or has a key or a value that is not allowed; or the file has anchors
            or stands in braces as a whole.
    """
    given = read_sections(path)
    parse_params(given, str(path), partial=True)
    wanted = with_defaults(given)
    if overlay is not None:
        wanted = _overlaid(wanted, read_sections(overlay))
        parse_params(wanted, f"{overlay} over {path}")
    text = path.read_text(encoding="utf-8")
    root = YAML(typ="safe", pure=True).compose(text)
    edits = list(_edits(text, root, Params, given=given, wanted=wanted))
    changes = [edit.change for edit in edits]
    edits.sort(key=lambda edit: edit.start)
    for edit in reversed(edits):  # so that the positions of those before stay
        text = text[: edit.start] + edit.text + text[edit.end :]
    if not _holds(text, wanted):
        raise UserError(
            f"{path} can't be edited here (anchors, or braces around all of it?); by hand: {'; '.join(changes)}"
        )
    if changes:
        with atomic_write(path.resolve()) as temporary:
            temporary.write_text(text, encoding="utf-8")
            shutil.copymode(path, temporary)
    return changes


def _overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the values of the overlay."""
    merged = {**content}
    for key, value in overlay.items():
        nested = isinstance(value, dict) and isinstance(content.get(key), dict) and key not in WHOLE
        merged[key] = _overlaid(content[key], value) if nested else value
    return merged


def _edits(
    text: str,
    mapping: MappingNode,
    section: type[ConfigSection] | None,
    *,
    given: Mapping[str, Any],
    wanted: Mapping[str, Any],
    parents: tuple[str, ...] = (),
) -> Iterator[_Edit]:
    """Yield the edits that turn what a mapping of the file holds into what is wanted.

    Args:
        text: of the whole file.
        mapping: its part.
        section: the section that it is; None for values by group.
        given: the content of the part.
        wanted: its content to be.
        parents: the keys that lead to the part.
    """
    nodes = {key.value: (key, value) for key, value in mapping.value}
    indent = mapping.start_mark.column
    after: int | None = None
    order = dict.fromkeys([*(section.fields_by_key() if section else ()), *wanted])
    for key in order:
        name, value = ".".join([*parents, key]), wanted[key]
        if key in nodes:
            name_node, node = nodes[key]
            after = end = _end(text, name_node, node)
        if key in given and given[key] == value:
            continue
        if key not in nodes:
            lines = yaml_lines(section, key, value, indent)
            if not parents:  # a blank line between sections
                lines = [*lines, ""] if after is None else ["", *lines]
            at, inserted = _insertion(text, mapping, after, lines)
            shown = "" if isinstance(value, dict) else f": {inline_yaml(value)}"
            yield _Edit(at, at, inserted, f"added {name}{shown}")
        elif isinstance(value, dict) and isinstance(given[key], dict) and not node.flow_style and key not in WHOLE:
            inner = section_of(section, key)
            yield from _edits(text, node, inner, given=given[key], wanted=value, parents=(*parents, key))
        else:
            lines = yaml_lines(section, key, value, indent, comments=False)
            change = f"changed {name}: {inline_yaml(given[key])} → {inline_yaml(value)}"
            yield _Edit(name_node.start_mark.index, end, "\n".join(lines).lstrip(), change)


def _insertion(text: str, mapping: MappingNode, after: int | None, lines: list[str]) -> tuple[int, str]:
    """Return where to put lines, and how: below the line of ``after``; without one above the first key's comment."""
    if after is not None:
        at = text.find("\n", after) if "\n" in text[after:] else len(text)
        return at, "".join(f"\n{line}" for line in lines)
    above = text[: mapping.start_mark.index].splitlines(keepends=True)
    while above and above[-1].strip(" ")[:1] in {"", "#"}:
        above.pop()
    return len("".join(above)), "".join(f"{line}\n" for line in lines)


def _end(text: str, key: Node, value: Node) -> int:
    """Return where the value of a key ends in the text, without what follows: a comment, blank lines."""
    while isinstance(value, CollectionNode) and not value.flow_style and value.value:
        if isinstance(value, MappingNode):
            key, value = value.value[-1]
        else:
            value = value.value[-1]
    if value.end_mark.index == value.start_mark.index:  # nothing stands there, which is null
        return text.index(":", key.end_mark.index) + 1
    return len(text[: value.end_mark.index].rstrip())


def _holds(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return bool(YAML(typ="safe").load(text) == wanted)
    except YAMLError:
        return False
