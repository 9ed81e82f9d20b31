"""Values as people write them in tables: numbers, and whether something is there."""

import math
import re
import unicodedata
from typing import Any

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
UNKNOWN = {"na", "n/a", "nan", "null", "none", "nil", "unknown", "missing", "-", "--", "?", ".", "#n/a"}
INFINITE = {"inf", "infinity", "+inf", "-inf", "+infinity", "-infinity", "∞", "-∞", "#div/0!"}
LARGEST = 1e30
"""Squares of such numbers still fit into float32's range when they are standardised."""
PRESENT = {"0": 0, "false": 0, "no": 0, "1": 1, "true": 1, "yes": 1}
UNIT = re.compile(r"(?P<name>.*\S)\s*[\[(](?P<unit>[^\])]*)[\])]")


def split_unit(column: str) -> tuple[str, str]:
    """Return the name and the unit of a column such as ``weight [kg]`` or ``age (years)``; the unit may be empty."""
    match = UNIT.fullmatch(column.strip())
    return (match["name"], match["unit"].strip()) if match else (column.strip(), "")


def read_number(cell: Any) -> float | None:
    """Return the number in a cell, None of an empty one.

    Raises:
        ValueError: says what is wrong, and how to write it.
    """
    if isinstance(cell, bool):
        raise ValueError(f"{cell} is no number")
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, int | float):
        return _finite(float(cell), str(cell))
    text = unicodedata.normalize("NFKC", str(cell)).replace("\N{MINUS SIGN}", "-").strip()
    if not text:
        return None
    if re.fullmatch(NUMBER, text):
        return _finite(float(text), text)
    raise ValueError(f"{text[:60]!r} {_no_number(text)}")


def _finite(number: float, text: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{text[:60]!r} is infinite: leave the cell empty where the value is unknown")
    if abs(number) > LARGEST:
        raise ValueError(f"{text[:60]!r} is larger than {LARGEST:g}: choose another unit")
    return number


RANGE = "is a range: write one number, or leave the cell empty"
KINDS_OF_TEXT = {
    r"[+-]?\d{1,3}(,\d{3})+\.\d+": "has commas between thousands: write the digits and the point alone",
    r"[+-]?\d{1,3}(\.\d{3})+,\d+": "has a comma for the point: write a point there, and none between thousands",
    r"[+-]?\d*,\d+([eE][+-]?\d+)?": "has a comma: write a point, or nothing if it separates thousands",
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?": "is a date: write a number, such as days or years since one",
    r"\d{1,3}(:\d{2})+(\.\d+)?": "is a time: write a number, such as seconds",
    r"[<>≤≥~±]=?.*": RANGE,
    rf"{NUMBER}\s*(-|\N{{EN DASH}}|to|\.\.|±|\+/-)\s*{NUMBER}": RANGE,
    r"[+-]?\d+([ _'\N{RIGHT SINGLE QUOTATION MARK}]\d{3})+(\.\d+)?": "has signs between thousands: write digits alone",
    rf"\W*{NUMBER}\s*\D.*|[€$£]\s*{NUMBER}": "has a unit: write the number alone; the column may be called weight [kg]",
}
"""What people write for numbers, and what to do about it; the first pattern that matches."""


def _no_number(text: str) -> str:
    """Return why a text is no number, and what to do about it."""
    plain = text.casefold()
    if plain in UNKNOWN or plain in INFINITE:
        return f"is {'infinite' if plain in INFINITE else 'no number'}: leave the cell empty where the value is unknown"
    return next((problem for pattern, problem in KINDS_OF_TEXT.items() if re.fullmatch(pattern, text)), "is no number")


def read_flag(cell: Any) -> int | None:
    """Return 1 if a cell says that a label is there, 0 if it is not, None of an empty one, which is unknown.

    Raises:
        ValueError: it says something else.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    text = unicodedata.normalize("NFKC", str(cell)).strip().casefold()
    if not text:
        return None
    flag = PRESENT.get(re.sub(r"(?<=^[01])\.0+$", "", text))
    if flag is None:
        advice = "leave the cell empty" if text in UNKNOWN or text == "-1" else "write 0 or 1, or leave the cell empty"
        raise ValueError(f"{str(cell)[:60]!r} is neither 0 nor 1: {advice} where it is unknown")
    return flag
