"""How the report formats numbers, and text of unknown origin. The templates use each function by its name."""

import json
from typing import Any

from markupsafe import Markup

from headstart.targets.target import Measure

NO_BREAK = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction as a percentage, or a dash for None."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}{NO_BREAK}%"


def percent_range(fractions: tuple[float, float]) -> str:
    """Format the ends of an interval of fractions."""
    return f"{100 * fractions[0]:.1f} to {percent(fractions[1])}"


def measured(value: float | None, measure: Measure) -> str:
    """Format a figure as its measure wants it: as a percentage, with three decimals, or in a unit."""
    if value is None or measure.as_percent:
        return percent(value)
    if not measure.unit:
        return figure(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else compact(value)


def measured_range(ends: tuple[float, float] | None, measure: Measure) -> str:
    """Format the ends of an interval as their measure wants it, or a dash for None."""
    if ends is None:
        return NOTHING
    return percent_range(ends) if measure.as_percent else " to ".join(measured(end, measure) for end in ends)


def change(difference: float | None, measure: Measure) -> str:
    """Format a difference with its sign: in percentage points, with three decimals, or three digits in a unit."""
    if difference is None:
        return NOTHING
    if measure.as_percent:
        return points(difference)
    return f"{difference:+.3g}".replace("-", "−") if measure.unit else signed(difference)


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def signed(difference: float) -> str:
    """Format a difference with its sign."""
    return f"{difference:+.3f}".replace("-", "−")


def figure(value: float | None) -> str:
    """Format a number with three decimals, or a dash for None."""
    return NOTHING if value is None else f"{value:.3f}".replace("-", "−")


def compact(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def small_percent(fraction: float) -> str:
    """Format a fraction that may be very small as a percentage with two significant digits."""
    return f"{100 * fraction:.2g}{NO_BREAK}%"


def strength(value: float | None) -> str:
    """Format a λ, such as 5.5e-2, or a dash for None."""
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def p_value(p: float | None) -> str:
    """Format a p-value, or a dash for None."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f}{NO_BREAK}s"
    return f"{seconds / 60:.0f}{NO_BREAK}min" if seconds < 5400 else f"{seconds / 3600:.1f}{NO_BREAK}h"


def count(n: int, noun: str | None = None) -> str:
    """Format a number with commas and the noun that it counts; the plural is the noun with an s."""
    return f"{n:,}" if noun is None else f"{n:,}{NO_BREAK}{noun}{'' if n == 1 else 's'}"


def visible(value: Any) -> Any:
    """Escape the invisible characters of a text, such as control and direction characters; leave other values."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    printable = (c if c.isprintable() or c == NO_BREAK else c.encode("unicode_escape").decode() for c in value)
    return "".join(printable)


def sum_of(counts: dict[str, int]) -> int:
    """Return the sum of the splits' counts."""
    return sum(counts.values())


def flat(params: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested params to pairs of a dotted key and its value as JSON."""
    pairs = []
    for name, value in params.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return pairs
