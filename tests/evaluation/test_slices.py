import numpy as np
import pytest

from headstart.evaluation.bootstrap import assign_units
from headstart.evaluation.slices import MAX_VALUES, Slice, compute_slices, read_metadata

LABELS = np.arange(120) % 3
RIGHT = np.ones(120, bool)
RIGHT[:30] = np.arange(30) % 2 == 0


def slices(columns: dict[str, list[str]], groups: list[str] | None = None) -> list[Slice]:
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return compute_slices(read_metadata(rows), RIGHT, assign_units(LABELS, groups))


def test_the_surely_worst_slice_stands_first() -> None:
    columns = {"site": ["one"] * 60 + ["two"] * 59 + ["three"], "constant": ["x"] * 120}
    found = slices(columns)
    assert [(each.column, each.value, each.images) for each in found] == [
        ("site", "one", 60),
        ("site", "three", 1),
        ("site", "two", 59),
    ]
    assert found[0].score == pytest.approx(0.75)
    assert found[0].low < 0.75 < found[0].high < 0.9
    # Where all are right the interval is the exact one, wide for a single image.
    assert (found[1].high, found[2].high) == (1, 1)
    assert found[1].low == pytest.approx(0.025)
    assert 0.9 < found[2].low < 1


def test_numbers_are_cut_into_quarters_and_names_without_end_left_out() -> None:
    columns = {"age": [str(i) for i in range(120)], "file": [f"f{i}" for i in range(120)]}
    assert len(set(columns["age"])) > MAX_VALUES
    found = slices(columns)
    assert {each.column for each in found} == {"age"}
    assert (found[0].value, found[0].images, found[0].score) == ("0 to 29.75", 30, 0.5)
    assert sum(each.images for each in found) == 120


def test_empty_values_are_in_no_slice() -> None:
    columns = {"site": ["one"] * 20 + [""] * 80 + ["two"] * 20, "age": [str(i) if i < 100 else "" for i in range(120)]}
    found = slices(columns)
    assert sum(each.images for each in found if each.column == "site") == 40
    assert sum(each.images for each in found if each.column == "age") == 100


def test_a_slice_of_few_groups_is_less_certain() -> None:
    columns = {"site": ["one"] * 60 + ["two"] * 60}
    groups = [f"{i // 30}" for i in range(120)]
    alone, grouped = (slices(columns, each) for each in (None, groups))
    widths = [[each.high - each.low for each in found if each.value == "one"] for found in (alone, grouped)]
    assert widths[1] > widths[0]


def test_the_last_quarter_has_its_end_and_one_value_is_no_slice() -> None:
    columns = {"age": [str(i % 40) for i in range(120)], "same": [f"1.{'0' * (1 + i % 40)}" for i in range(120)]}
    found = slices(columns)
    assert sorted((each.value, each.images) for each in found) == [
        ("0 to 9.75", 30), ("19.5 to 29.25", 30), ("29.25 to 39", 30), ("9.75 to 19.5", 30),
    ]  # fmt: skip


def test_numbers_that_turn_out_to_be_names_are_left_out() -> None:
    assert (
        slices({"age": [*(str(i) for i in range(119)), "old"], "mixed": ["old", *(str(i) for i in range(119))]}) == []
    )
