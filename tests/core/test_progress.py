import io
import logging
import sys
import time
from types import SimpleNamespace

import pytest

from headstart.core import progress
from headstart.core.progress import Progress


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=made))
    return made


def test_a_file_gets_a_line_every_ten_seconds(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO), Progress("features", 100) as shown:
        for _ in range(6):
            clock.now += 4
            shown.advance(10)
    assert [record.getMessage() for record in caplog.records] == [
        "features: 30 of 100 images, 2/s, 28 s left",  # 30 in 12 s, 2.5 a second
        "features: 60 of 100 images, 2/s, 16 s left",
    ]
    assert capsys.readouterr().err == ""


def test_short_work_is_quiet_and_no_work_is_no_division_by_zero(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        with Progress("prepare", 3, "images") as shown:
            shown.advance(3)
        with Progress("prepare", 3) as shown:
            clock.now += 60
            shown.advance(0)
    assert [record.getMessage() for record in caplog.records] == ["prepare: 0 of 3 images, 0/s, inf s left"]


def test_closing_gives_the_rate(clock: Clock) -> None:
    shown = Progress("features", 100)
    clock.now += 5
    shown.advance(40)
    assert shown.close() == pytest.approx(8)


def test_where_nobody_knows_how_many(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("predict", None) as shown:
        clock.now += 10
        shown.advance()
        clock.now += 10
        shown.total = 40  # somebody has counted
        shown.advance(9)
    assert [record.getMessage() for record in caplog.records] == [
        "predict: 1 images, 0/s",
        "predict: 10 of 40 images, 0/s, 60 s left",
    ]


def stderr_as_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make stderr a terminal; return what is written to it. No fixture, since pytest sets stderr after those."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_terminal_sees_how_far_it_is_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr_as_terminal(monkeypatch)
    with Progress("predict", None) as shown:
        shown.advance()
        shown.total = 40
        time.sleep(0.15)  # tqdm draws ten times a second
        shown.advance(9)
        assert "predict:  25%" in terminal.getvalue()
        assert " 10/40 " in terminal.getvalue()
    *_, last, end = terminal.getvalue().split("\r")
    assert (last.strip(" "), end) == ("", "")


def test_nothing_is_shown_where_it_is_not_asked_for_but_all_is_counted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = stderr_as_terminal(monkeypatch)
    with caplog.at_level(logging.INFO), Progress("predict", None, shown=False) as shown:
        clock.now += 60
        shown.advance()
    assert (shown.done, shown.seconds) == (1, 60)
    assert (terminal.getvalue(), caplog.records) == ("", [])


def test_a_terminal_gets_a_bar_and_no_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = stderr_as_terminal(monkeypatch)
    with caplog.at_level(logging.INFO), Progress("features", 10, "rows") as shown:
        clock.now += 60
        shown.advance(10)
    assert "features" in terminal.getvalue()
    assert "rows" in terminal.getvalue()
    assert not caplog.records
