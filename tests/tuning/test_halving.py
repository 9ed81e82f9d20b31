"""Which try comes next, on invented figures."""

import pytest

from headstart.training.figures import Monitor
from headstart.tuning.halving import Halving, Job, Try, epochs_that_fit, rungs_of

RULES = Halving([1, 3, 9], Monitor("val_loss", higher_is_better=False))
LONG = 1e9


def trained(number: int, losses: list[float], *, over: bool = False, failed: str = "") -> Try:
    """A try whose epochs took 10 s each, and its starts 1 s."""
    rows: list[dict[str, int | float]] = [{"epoch": 0, "val_loss": 9.0}]
    rows += [{"epoch": i + 1, "val_loss": loss, "seconds": 10.0} for i, loss in enumerate(losses)]
    return Try(number, {}, len(losses), rows, over, failed, seconds=10.0 * len(losses) + 1, trainings=1)


WHOLE = trained(0, [0.5] * 9, over=True)


def test_the_params_as_they_are_are_trained_to_their_end_first() -> None:
    tries = [trained(0, [0.5])]
    assert RULES.next_job(tries, set(), LONG) == Job(0, 9)
    assert RULES.next_job(tries, {0}, LONG) == Job(1, 1), "another process trains them"
    assert RULES.next_job(tries, set(), 0) == Job(0, 9), "without any whole training, whatever the time"
    assert RULES.next_job([trained(0, [0.5], failed="the loss is not finite")], set(), LONG) == Job(1, 1)


def test_the_best_third_goes_on_before_another_begins() -> None:
    tries = [WHOLE, trained(1, [0.3])]
    assert RULES.next_job(tries, set(), LONG) == Job(2, 1)
    tries.append(trained(2, [0.4]))
    assert RULES.next_job(tries, set(), LONG) == Job(1, 3)
    assert RULES.next_job(tries, {1}, LONG) == Job(3, 1), "another process trains it"


def test_what_was_interrupted_comes_first() -> None:
    interrupted = trained(1, [0.5])
    interrupted.goal = 3
    assert RULES.next_job([WHOLE, interrupted, trained(2, [0.3])], set(), LONG) == Job(1, 3)


def test_a_failed_try_is_never_ahead_and_counts_among_those_that_came() -> None:
    tries = [WHOLE, trained(1, [0.1], failed="the loss is not finite"), trained(2, [0.4])]
    assert RULES.next_job(tries, set(), LONG) == Job(2, 3)


def test_nothing_begins_that_could_not_be_trained_to_its_end() -> None:
    """At 10 s an epoch and 1 s a start, of which a try that stops once has two."""
    tries = [WHOLE, trained(1, [0.6]), trained(2, [0.7])]
    assert RULES.next_job(tries, set(), 92) == Job(3, 1)
    assert RULES.next_job(tries, set(), 91) == Job(1, 9), "the one that is ahead of those that are not whole"
    assert RULES.next_job(tries, set(), 81) == Job(1, 9)
    assert RULES.next_job(tries, set(), 80) is None


def test_the_winner_is_a_whole_training() -> None:
    tries = [trained(0, [0.5] * 9, over=True), trained(1, [0.1]), trained(2, [0.4] * 5, over=True)]
    winner = RULES.winner(tries)
    assert winner is not None
    assert winner.number == 2
    assert RULES.winner([trained(1, [0.1])]) is None


@pytest.mark.parametrize(
    ("epochs", "warmup", "rungs"),
    [(9, 0, [1, 3, 9]), (10, 1, [2, 4, 10]), (3, 1, [2, 3]), (1, 1, [1]), (30, 1, [4, 10, 30])],
)
def test_rungs(epochs: int, warmup: float, rungs: list[int]) -> None:
    assert rungs_of(epochs, warmup) == rungs


def test_epochs_that_fit() -> None:
    """At 10 s each and 2 s for the start."""
    assert epochs_that_fit(10, 10.0, 2.0, 102) == 10
    assert epochs_that_fit(10, 10.0, 2.0, 101) == 9
    assert epochs_that_fit(10, 10.0, 2.0, 11) == epochs_that_fit(10, 10.0, 2.0, 0) == 0
