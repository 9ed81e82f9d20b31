"""Adds the keys that a ``params.yaml`` lacks and lays an overlay over it; the rest of the file stays as it is.

The file is edited as text, at the positions that ruamel gives. Its own round trip attaches a
comment to the value above it: a key inserted there would stand between the next key and its comment, and replacing a
list would delete the comment that follows it.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from headstart.config.loader import parse_params, read_sections, with_defaults
from headstart.config.writer import Keys, inline_yaml, yaml_lines
from headstart.core.errors import UserError
from headstart.core.io import atomic_write

WHOLE = {"args", "class_map", "split_folders"}
"""Keys whose mappings an overlay replaces: what they hold is of one backbone, or of one folder of images."""


class _Edit(NamedTuple):
    """Text for the place from ``start`` to ``end``, and what it changes, for the user."""

    start: int
    end: int
    text: str
    change: str


def complete_params(path: Path, overlay: Path | Mapping[str, Any] | None = None) -> list[str]:
    """Add the missing keys to a ``params.yaml``, and take over an overlay's; return the changes.

    The overlay is a file, such as a recipe, or its content.

    The values by group (``lr``, ``decay``, ``l2``) are merged with the file's, lists are replaced. The file is not
    touched if nothing changes.

    Raises:
        UserError: a file is missing, is not YAML, or has a key or a value that is not allowed; or the file has anchors
            or stands in braces as a whole.
    """
    if isinstance(overlay, Path) and not overlay.exists():
        raise UserError(f"{overlay} does not exist: give a file with some of the keys of {path}")
    given = read_sections(path)
    parse_params(given, str(path), partial=True)
    wanted, _ = with_defaults(given)
    if overlay is not None:
        content, name = (read_sections(overlay), overlay) if isinstance(overlay, Path) else (overlay, "the new values")
        wanted = _overlaid(wanted, content)
        parse_params(wanted, f"{name} over {path}")
    text, newline = path.read_text(encoding="utf-8"), "\r\n" if b"\r\n" in path.read_bytes() else "\n"
    root = YAML(typ="safe", pure=True).compose(text)
    edits = list(_edits(text, root, given, wanted))
    # Reversed, so that the positions of those before stay; a reverse sort would also swap insertions at one place.
    for edit in sorted(edits, key=lambda edit: edit.start)[::-1]:
        text = text[: edit.start] + edit.text + text[edit.end :]
    result = None
    with suppress(YAMLError):
        result = YAML(typ="safe").load(text)
    changes = [edit.change for edit in edits]
    if result != wanted:
        raise UserError(
            f"{path} can't be edited here (anchors, or braces around all of it?); by hand: {'; '.join(changes)}"
        )
    if changes:
        with atomic_write(path.resolve()) as temporary:
            temporary.write_text(text, encoding="utf-8", newline=newline)
            shutil.copymode(path, temporary)
    return changes


def overlay_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as the content of an overlay, nested as in ``params.yaml``."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *parents, name = key.split(".")
        reduce(lambda section, parent: section.setdefault(parent, {}), parents, nested)[name] = value
    return nested


def _overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the values of the overlay."""
    merged = {**content}
    for key, value in overlay.items():
        nested = isinstance(value, dict) and isinstance(content.get(key), dict) and key not in WHOLE
        merged[key] = _overlaid(content[key], value) if nested else value
    return merged


def _edits(
    text: str, mapping: MappingNode, given: Mapping[str, Any], wanted: Mapping[str, Any], parents: Keys = ()
) -> Iterator[_Edit]:
    """Yield the edits of a file's text that turn what a mapping in it holds into what is wanted."""
    nodes = {key.value: (key, value) for key, value in mapping.value}
    indent = mapping.start_mark.column
    after: int | None = None
    for key, value in wanted.items():
        keys = (*parents, key)
        name = ".".join(keys)
        if key in nodes:
            name_node, node = nodes[key]
            after = end = _end(text, name_node, node)
        if key in given and given[key] == value:
            continue
        if key not in nodes:
            lines = yaml_lines(keys, value, indent)
            if not parents:  # a blank line between sections
                lines = [*lines, ""] if after is None else ["", *lines]
            shown = "" if isinstance(value, dict) else f": {inline_yaml(value)}"
            if after is None:  # above the comment of the first key
                at = len(re.sub(r"(^ *#.*\n)* *\Z", "", text[: mapping.start_mark.index], flags=re.MULTILINE))
                inserted = "".join(f"{line}\n" for line in lines)
            else:
                at = after + len(text[after:].partition("\n")[0])
                inserted = "".join(f"\n{line}" for line in lines)
            yield _Edit(at, at, inserted, f"added {name}{shown}")
        elif isinstance(value, dict) and isinstance(given[key], dict) and not node.flow_style and key not in WHOLE:
            yield from _edits(text, node, given[key], value, keys)
        else:
            lines = yaml_lines(keys, value, indent, comments=False)
            change = f"changed {name}: {inline_yaml(given[key])} → {inline_yaml(value)}"
            yield _Edit(name_node.start_mark.index, end, "\n".join(lines).lstrip(), change)


def _end(text: str, key: Node, value: Node) -> int:
    """Return where the value of a key ends in the text, without what follows: a comment, blank lines."""
    while isinstance(value, CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        key, value = last if isinstance(value, MappingNode) else (key, last)
    if value.end_mark.index == value.start_mark.index:  # nothing stands there, which is null
        return text.index(":", key.end_mark.index) + 1
    return len(text[: value.end_mark.index].rstrip())
