"""JSON from strangers: read strictly, each value checked for its type and range where it is taken.

What is refused is a UserError that names the file and the key.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from headstart.core.errors import UserError

LONGEST_TEXT = 10_000


@dataclass(frozen=True)
class Untrusted:
    """A value of a JSON file, and where it stands there."""

    value: Any
    file: str
    key: str = ""

    @classmethod
    def parse(cls, content: bytes, file: str) -> "Untrusted":
        """Parse a file's bytes, in UTF-8; no key twice, no NaN, no infinity, no nesting that breaks the parser."""
        whole = cls(None, file)

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
                whole.refuse(f"has the key {twice[:100]!r} twice")
            return found

        def no_number(text: str) -> NoReturn:
            whole.refuse(f"holds {text}, which is no number of JSON")

        try:
            text = content.decode("utf-8")
            return cls(json.loads(text, object_pairs_hook=once, parse_constant=no_number), file)
        except RecursionError:
            whole.refuse("is nested too deeply")
        except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
            whole.refuse(f"is not JSON: {error}")

    def refuse(self, what: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{self.file}: {f'{self.key} ' if self.key else ''}{what}")

    def __getitem__(self, name: str) -> "Untrusted":
        """Return what stands under a key, which must be there."""
        found = self.get(name)
        if name not in self.value:
            found.refuse("is missing")
        return found

    def get(self, name: str) -> "Untrusted":
        """Return what stands under a key, or null."""
        if not isinstance(self.value, dict):
            self.refuse("must be an object")
        return Untrusted(self.value.get(name), self.file, f"{self.key}.{name[:100]}".removeprefix("."))

    def items(self) -> Iterator[tuple[str, "Untrusted"]]:
        """Return every key of an object with what stands there."""
        if not isinstance(self.value, dict):
            self.refuse("must be an object")
        for name in self.value:
            yield name, self[name]

    def list(self, least: int, most: int) -> "list[Untrusted]":
        """Return the entries of a list of ``least`` to ``most``."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            self.refuse(f"must be a list of {count}")
        return [Untrusted(each, self.file, f"{self.key}[{i}]") for i, each in enumerate(self.value)]

    def number(self, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse("must be a number")
        if not least <= value <= most or not math.isfinite(value):
            self.refuse(f"must be from {least:g} to {most:g}")
        return float(value)

    def integer(self, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not least <= self.value <= most:
            self.refuse(f"must be a whole number from {least} to {most}")
        return self.value

    def text(self, longest: int = LONGEST_TEXT) -> str:
        """Return a text that UTF-8 can write."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= longest:
            self.refuse(f"must be a text of 1 to {longest} characters")
        if any("\ud800" <= character <= "\udfff" for character in self.value):
            self.refuse("holds half a character")
        return self.value

    def one_of(self, allowed: tuple[str, ...]) -> str:
        """Return a text that is one of those allowed."""
        if not isinstance(self.value, str) or self.value not in allowed:
            self.refuse(f"must be one of {', '.join(allowed)}")
        return self.value
