"""Comparing what is nested."""

from typing import Any

import pytest


def approximately(value: Any, difference: float) -> Any:
    """The same, with numbers that equal others up to a difference."""
    if isinstance(value, dict):
        return {key: approximately(each, difference) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [approximately(each, difference) for each in value]
    return pytest.approx(value, abs=difference) if isinstance(value, float) and difference else value
