"""The flag that a signal sets, and the exchange of a single process; several ranks are in tests/stages."""

import signal

import pytest

from headstart.distributed.process_group import ProcessGroup
from headstart.distributed.signals import SignalSync, stop_flag


def test_a_signal_only_sets_the_flag_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_flag() as flag:
        assert flag.number == 0
        signal.raise_signal(signal.SIGUSR1)
        assert flag.number == signal.SIGUSR1
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert flag.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_single_process_agrees_at_once() -> None:
    sync = SignalSync(ProcessGroup(), 2)
    assert sync.exchange((0, 0)) == [0, 0]
    assert sync.exchange((15, 1)) == [15, 1]
    sync.close()


@pytest.mark.parametrize("width", [1, 3])
def test_as_many_values_as_asked(width: int) -> None:
    assert len(SignalSync(ProcessGroup(), width).exchange([0] * width)) == width
