"""Long lists: the screen has the first 20, a file has all."""

from pathlib import Path

import pytest

from headstart.core.paths import PROBLEMS
from headstart.core.problems import count_kinds, list_problems, some


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_short_list_is_shown_as_a_whole() -> None:
    text = list_problems("first:", [("a", "bad: 1"), ("b\nc", "worse")], "last")
    assert text.splitlines() == ["first:", "  a: bad: 1", r"  'b\nc': worse", "last"]
    assert list_problems("first:", [("a", "bad")]).count("\n") == 1
    assert not PROBLEMS.exists()


def test_a_long_list_is_in_a_file() -> None:
    problems = [(f"{i}.jpg", f"damaged: {i}" if i % 3 else f"{i} x 9 pixels") for i in range(1000)]
    lines = list_problems("first:", problems, "last").splitlines()
    assert (lines[1], lines[20], len(lines)) == ("  0.jpg: 0 x 9 pixels", "  19.jpg: damaged: 19", 23)
    assert lines[21] == f"  and 980 more, in all 666 x damaged, 334 x N x N pixels: all are in {PROBLEMS}"
    assert PROBLEMS.read_text().splitlines() == [f"  {name}: {problem}" for name, problem in problems]


def test_a_folder_that_cannot_be_written_loses_no_message() -> None:
    PROBLEMS.parent.touch()
    assert "can't be written" in list_problems("first:", [("a", "bad")] * 21)


def test_kinds_are_counted_without_their_details() -> None:
    reasons = ["the same bytes as a.jpg, but that is labelled 'x'"] * 2 + ["larger than 1 GiB", "larger than 2 GiB"]
    assert count_kinds([*reasons, "a pipe, not a file"]) == "2 x the same bytes, 2 x larger than N GiB, 1 x a pipe"
    assert count_kinds(["its name is not UTF-8: rename it", "HDF5 or netCDF, not"]) == (
        "1 x its name is not UTF-8, 1 x HDF5 or netCDF"
    )


def test_names_on_one_line() -> None:
    assert some("abc") == "a, b, c"
    assert some(map(str, range(1030)), 3) == "0, 1, 2 and 1,027 more"
