"""The flag that a signal sets; how several ranks agree on it is in tests/stages."""

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


def test_one_alone_agrees_at_once() -> None:
    agreement = SignalSync(ProcessGroup(), 2)
    assert agreement.exchange((0, 0)) == [0, 0]
    assert agreement.exchange((15, 1)) == [15, 1]
    agreement.close()


@pytest.mark.parametrize("width", [1, 3])
def test_as_many_values_as_asked(width: int) -> None:
    assert len(SignalSync(ProcessGroup(), width).exchange([0] * width)) == width
