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


class CellError(ValueError):
    """A cell that can't be read: what is wrong, where, its text, and how to write it."""

    def __init__(self, problem: str, cell: Any, advice: str, *places: str) -> None:
        super().__init__()
        self._problem, self._cell, self._advice, self._places = problem, cell, advice, places

    def __str__(self) -> str:
        """Return one line, which begins with the kind of problem: long lists are counted by it."""
        text = str(self._cell)
        shown = [] if self._cell is None else [repr(f"{text[:60]}…" if len(text) > 60 else text)]
        return f"{self._problem} ({', '.join([*self._places, *shown])}): {self._advice}"

    def at(self, place: str) -> "CellError":
        """Return the same of a place around the one that is known, such as a column or a line."""
        return CellError(self._problem, self._cell, self._advice, place, *self._places)


def read_number(cell: Any) -> float | None:
    """Return the number in a cell, None of an empty one.

    Raises:
        CellError: it holds something else.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return _in_range(float(cell), cell)
    text = unicodedata.normalize("NFKC", str(cell)).replace("\N{MINUS SIGN}", "-").strip()
    if not text:
        return None
    if re.fullmatch(NUMBER, text):
        return _in_range(float(text), cell)
    if text.casefold() in UNKNOWN:
        raise CellError("no number", cell, EMPTY)
    if text.casefold() in INFINITE:
        raise CellError("an infinite number", cell, EMPTY)
    kinds = (kind for pattern, kind in KINDS_OF_TEXT.items() if re.fullmatch(pattern, text))
    problem, advice = next(kinds, ("no number", "write a number, or leave the cell empty"))
    raise CellError(problem, cell, advice)


def _in_range(number: float, cell: Any) -> float:
    if not math.isfinite(number):
        raise CellError("an infinite number", cell, EMPTY)
    if abs(number) > LARGEST:
        raise CellError("a number that is too large", cell, "choose another unit, or leave the cell empty")
    return number


EMPTY = "leave the cell empty where the value is unknown"
RANGE = "a range", "write one number, or leave the cell empty"
KINDS_OF_TEXT = {
    r"[+-]?\d{1,3}(,\d{3})+\.\d+": ("commas between thousands", "write the digits and the point alone"),
    r"[+-]?\d{1,3}(\.\d{3})+,\d+": ("a comma for the point", "write a point there, and none between thousands"),
    r"[+-]?\d*,\d+([eE][+-]?\d+)?": ("a comma in a number", "write a point, or nothing if it separates thousands"),
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?": ("a date", "write a number, such as days or years since one"),
    r"\d{1,3}(:\d{2})+(\.\d+)?": ("a time", "write a number, such as seconds"),
    r"[<>≤≥~±]=?.*": RANGE,
    rf"{NUMBER}\s*(-|\N{{EN DASH}}|to|\.\.|±|\+/-)\s*{NUMBER}": RANGE,
    r"[+-]?\d+([ _'\N{RIGHT SINGLE QUOTATION MARK}]\d{3})+(\.\d+)?": ("thousands kept apart", "write the digits alone"),
    rf"\W*{NUMBER}\s*\D.*|[€$£]\s*{NUMBER}": ("a unit", "write the number alone; the column may be called weight [kg]"),
}
"""What people write for numbers: what it is, and what to do about it; the first pattern that matches."""


def read_flag(cell: Any) -> int | None:
    """Return 1 if a cell says that a label is there, 0 if it is not, None of an empty one, which is unknown.

    Raises:
        CellError: it says something else.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    text = unicodedata.normalize("NFKC", str(cell)).strip().casefold()
    if not text:
        return None
    flag = PRESENT.get(re.sub(r"(?<=^[01])\.0+$", "", text))
    if flag is None:
        advice = EMPTY if text in UNKNOWN or text == "-1" else "write them, or leave the cell empty where it is unknown"
        raise CellError("neither 0 nor 1", cell, advice)
    return flag
