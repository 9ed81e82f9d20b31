"""JSON from strangers: a value is checked for type and range where it is read.

What is wrong is a UserError that names the file and the key. The checks are written by hand: importing pydantic takes
as long as a whole first answer of predict (0.29 s of CPU time; msgspec 0.04 s, for one more compiled dependency), and
neither refuses a key that stands twice.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from headstart.core.errors import UserError


@dataclass(frozen=True)
class JsonValue:
    """A value of an untrusted JSON file; each method returns it as one type, or raises UserError."""

    value: Any
    file: str
    key: str = ""

    def refuse(self, problem: str) -> NoReturn:
        """Raise UserError with the file and the key."""
        raise UserError(" ".join(filter(None, (f"{self.file}:", self.key, problem))))

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("must be an object")
        return self.value

    def __getitem__(self, name: str) -> "JsonValue":
        printable = name[:100] if name.isprintable() else ascii(name[:100])[1:-1]
        child = JsonValue(self._object().get(name), self.file, f"{self.key}.{printable}".removeprefix("."))
        if name not in self.value:
            child.refuse("is missing")
        return child

    def get(self, name: str) -> "JsonValue | None":
        """Return the value of a key of an object, None where the key is missing or its value is null."""
        return None if self._object().get(name) is None else self[name]

    def items(self) -> Iterator[tuple[str, "JsonValue"]]:
        """Yield each key of an object with its value."""
        return ((name, self[name]) for name in self._object())

    def list(self, least: int, most: int) -> "list[JsonValue]":
        """Return the entries of a list of ``least`` to ``most``."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            self.refuse(f"must be a list of {least}" + (f" to {most}" if least < most else ""))
        return [JsonValue(each, self.file, f"{self.key}[{i}]") for i, each in enumerate(self.value)]

    def number(self, least: float, most: float) -> float:
        """Return a finite number from ``least`` to ``most``."""
        if type(self.value) not in (int, float) or not least <= self.value <= most:
            self.refuse(f"must be a number from {least:g} to {most:g}")
        return float(self.value)

    def integer(self, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        if type(self.value) is not int or not least <= self.value <= most:  # True is no whole number
            self.refuse(f"must be a whole number from {least} to {most}")
        return self.value

    def text(self, longest: int = 10_000, *, least: int = 1) -> str:
        """Return a text of ``least`` to ``longest`` characters that can be written in UTF-8."""
        if not isinstance(self.value, str) or not least <= len(self.value) <= longest:
            self.refuse(f"must be a text of {least} to {longest} characters")
        if any("\ud800" <= character <= "\udfff" for character in self.value):
            self.refuse("has half of a surrogate pair")
        return self.value

    def one_of(self, *allowed: str) -> str:
        """Return a text that is one of those allowed."""
        if not isinstance(self.value, str) or self.value not in allowed:
            self.refuse(f"must be one of {', '.join(allowed)}")
        return self.value


def parse_json(content: bytes, file: str) -> JsonValue:
    """Parse JSON in UTF-8; raises UserError for a key that stands twice, NaN, infinity, and too deep nesting."""
    root = JsonValue(None, file)

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                root.refuse(f"has the key {key[:100]!r} twice")
        return dict(pairs)

    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=lambda name: root.refuse(f"has {name}, which is no number in JSON"),
        )
    except RecursionError:
        root.refuse("is nested too deeply")
    except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
        root.refuse(f"is not JSON: {error}")
    return JsonValue(value, file)
