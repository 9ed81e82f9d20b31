"""How the report writes numbers, and text that others wrote. The template knows each function by its name."""

import json
from typing import Any

from markupsafe import Markup

NO_BREAK = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share as a percentage, or that there is none."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{NO_BREAK}%"


def percent_range(shares: tuple[float, float]) -> str:
    """Write the ends of an interval of shares."""
    return f"{100 * shares[0]:.1f} to {percent(shares[1])}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def signed(difference: float) -> str:
    """Write a difference with its sign."""
    return f"{difference:+.3f}".replace("-", "−")


def figure(value: float | None) -> str:
    """Write a number with three digits after the point, or that there is none."""
    return NOTHING if value is None else f"{value:.3f}".replace("-", "−")


def compact(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:.3g}".replace("-", "−")


def small_percent(share: float) -> str:
    """Write a share that may be very small as a percentage of two digits."""
    return f"{100 * share:.2g}{NO_BREAK}%"


def strength(value: float | None) -> str:
    """Write a λ, such as 5.5e-2."""
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def p_value(p: float | None) -> str:
    """Write a p-value, or that there is none."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.1f}{NO_BREAK}s"
    return f"{seconds / 60:.0f}{NO_BREAK}min" if seconds < 5400 else f"{seconds / 3600:.1f}{NO_BREAK}h"


def count(n: int, noun: str | None = None) -> str:
    """Write a number with commas, and what it counts: the plural is the noun with an s."""
    return f"{n:,}" if noun is None else f"{n:,}{NO_BREAK}{noun}{'' if n == 1 else 's'}"


def visible(value: Any) -> Any:
    """Write out what cannot be seen in a text, such as control characters and marks of direction; leave all else."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    printable = (c if c.isprintable() or c == NO_BREAK else c.encode("unicode_escape").decode() for c in value)
    return "".join(printable)


def sum_of(counts: dict[str, int]) -> int:
    """Add up the counts of the splits."""
    return sum(counts.values())


def flat(params: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """List nested params by dotted key, each value as JSON."""
    found = []
    for name, value in params.items():
        if isinstance(value, dict) and value:
            found += flat(value, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", json.dumps(value, ensure_ascii=False)))
    return found
