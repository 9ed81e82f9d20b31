"""Which try comes next, on invented figures."""

import pytest

from headstart.tuning.halving import Halving, Job, Try, epochs_that_fit, rungs_of

RULES = Halving([1, 3, 9], "val_loss")
LONG = 1e9


def trained(number: int, losses: list[float], *, over: bool = False, failed: str = "") -> Try:
    """A try whose epochs took 10 s each, and its starts 1 s."""
    rows: list[dict[str, int | float]] = [{"epoch": 0, "val_loss": 9.0}]
    rows += [{"epoch": i + 1, "val_loss": loss, "seconds": 10.0} for i, loss in enumerate(losses)]
    return Try(number, {}, len(losses), rows, over, failed, seconds=10.0 * len(losses) + 1, trainings=1)


def test_the_best_third_goes_on_before_another_begins() -> None:
    tries = [trained(0, [0.5]), trained(1, [0.3])]
    assert RULES.next_job(tries, set(), LONG) == Job(2, 1)
    tries.append(trained(2, [0.4]))
    assert RULES.next_job(tries, set(), LONG) == Job(1, 3)
    assert RULES.next_job(tries, {1}, LONG) == Job(3, 1), "another process trains it"


def test_what_was_interrupted_comes_first() -> None:
    interrupted = trained(0, [0.5])
    interrupted.goal = 3
    assert RULES.next_job([interrupted, trained(1, [0.3])], set(), LONG) == Job(0, 3)


def test_a_failed_try_is_never_ahead_and_counts_among_those_that_came() -> None:
    tries = [trained(0, [0.5]), trained(1, [0.1], failed="the loss is not finite"), trained(2, [0.4])]
    assert RULES.next_job(tries, set(), LONG) == Job(2, 3)


def test_the_time_for_a_whole_training_is_kept() -> None:
    """Of 10 s an epoch and 1 s a start."""
    tries = [trained(0, [0.5]), trained(1, [0.3])]
    # Another first rung, 11 s, then the 8 epochs of the better one, 81 s; or, if it wins, its own.
    assert RULES.next_job(tries, set(), 92) == Job(2, 1)
    assert RULES.next_job(tries, set(), 91) == Job(1, 9)
    assert RULES.next_job(tries, set(), 0) == Job(1, 9), "without any whole training, whatever the time"
    whole = [*tries, trained(2, [0.4] * 9, over=True)]
    assert RULES.next_job(whole, set(), 80) is None
    assert RULES.next_job(whole, set(), 81) == Job(1, 9)
    assert RULES.next_job(whole, set(), 82) == Job(1, 3), "and a start more"


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
    # n epochs, three first rungs of 2 epochs and five starts.
    assert epochs_that_fit(10, 1, 10.0, 2.0, 10 * (10 + 6) + 10) == 10
    assert epochs_that_fit(10, 1, 10.0, 2.0, 10 * (8 + 6) + 10) == 8
    assert epochs_that_fit(10, 1, 10.0, 2.0, 30) == 0
