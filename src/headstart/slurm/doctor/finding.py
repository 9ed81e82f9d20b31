"""What the doctor says."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        severity: ``error`` where hours would be lost, ``warning`` where something is, ``info`` for what was measured.
        name: the same for the same trouble, for scripts that read ``--json``.
        message: one line: what is wrong, where, and what to do.
    """

    severity: Literal["error", "warning", "info"]
    name: str
    message: str
