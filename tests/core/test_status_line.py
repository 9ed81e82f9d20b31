import io

import pytest

from headstart.core.progress import StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr("headstart.core.progress.time.perf_counter", lambda: now[0])
    return now


def test_a_terminal_sees_how_far_it_is(clock: list[float]) -> None:
    terminal = Terminal()
    status = StatusLine(terminal, "images")
    status.total = 40
    status.advance()
    assert terminal.getvalue() == ""  # too soon after the start to say a rate
    for _ in range(9):
        clock[0] += 0.5
        status.advance()
    assert terminal.getvalue().rpartition("\r")[2] == "10 of 40 images, 2/s, 14 s left\x1b[K"
    assert status.close() == 4.5
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_where_nobody_knows_how_many(clock: list[float]) -> None:
    terminal = Terminal()
    status = StatusLine(terminal, "images")
    clock[0] += 2
    status.advance()
    assert terminal.getvalue() == "\r1 images, 0/s\x1b[K"


@pytest.mark.parametrize(("file", "shown"), [(io.StringIO(), True), (Terminal(), False)])
def test_nothing_is_shown_elsewhere_but_all_is_counted(clock: list[float], file: io.StringIO, shown: bool) -> None:
    status = StatusLine(file, "images", shown=shown)
    clock[0] += 1
    status.advance()
    assert (status.done, status.close(), file.getvalue()) == (1, 1.0, "")
