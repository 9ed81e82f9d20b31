"""What a key of ``params.yaml`` that is ``auto`` was resolved to."""

from typing import Any, NamedTuple


class Choice(NamedTuple):
    """The value that a key stood for, and why."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return the line for the log."""
        return f"{self.key}: {self.value}; {self.reason}"
