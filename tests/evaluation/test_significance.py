from math import comb
from typing import Any

import numpy as np
import pytest

from headstart.evaluation.significance import compare, correct_p_values, holm, nll_difference, verdict
from headstart.targets.classes import Classes
from helpers.resampled import redrawn_figures

THREE = Classes(["a", "b", "c"])


def comparison(n: int, only: int, only_other: int, groups: list[str] | None = None) -> dict[str, Any]:
    """Two classifiers that both have half of the rest right."""
    labels = np.zeros(n, np.int64)
    right = {name: np.arange(n) >= (n + only + only_other) // 2 for name in ("a", "b")}
    right["a"][:only] = True
    right["b"][only : only + only_other] = True
    logits = {
        name: np.where(each[:, None], [2.0, 0, 0], [0.0, 2, 0]).astype(np.float32) for name, each in right.items()
    }
    replicates = {name: redrawn_figures(each, labels, groups, 2) for name, each in logits.items()}
    nll = {name: float((np.log(np.exp(2) + 2) - 2 * each).mean()) for name, each in right.items()}
    points = {name: {"accuracy": right[name].mean(), "nll": nll[name]} for name in right}
    return compare(("a", "b"), THREE, right, points, replicates, grouped=groups is not None)


def test_differences_counts_and_p_values() -> None:
    found = comparison(200, 30, 10)
    assert (found["only_model_right"], found["only_other_right"]) == (30, 10)
    assert found["accuracy_difference"] == pytest.approx(0.1)
    assert found["nll_difference"] == pytest.approx(0.2)  # each image more that is right is 2 nats less
    assert found["mcnemar_p"] == pytest.approx(2 * sum(comb(40, i) for i in range(11)) / 2**40)
    # The difference of n pairs has the variance (discordant / n - difference²) / n.
    half = 1.96 * np.sqrt((0.2 - 0.1**2) / 200)
    assert found["accuracy_interval"] == pytest.approx([0.1 - half, 0.1 + half], abs=0.012)
    assert found["nll_interval"] == pytest.approx([0.2 - 2 * half, 0.2 + 2 * half], abs=0.024)
    assert found["bootstrap_p"] < 0.01
    swapped = comparison(200, 10, 30)
    assert swapped["accuracy_difference"] == pytest.approx(-0.1)
    assert swapped["mcnemar_p"] == found["mcnemar_p"]
    assert swapped["bootstrap_p"] < 0.01


def test_equal_models_are_not_told_apart() -> None:
    found = comparison(100, 0, 0)
    assert (found["mcnemar_p"], found["bootstrap_p"]) == (1, 1)
    assert found["accuracy_interval"] == [0, 0]
    assert comparison(100, 5, 5)["mcnemar_p"] == 1


def test_groups_leave_mcnemars_test_out_and_count_for_the_bootstrap() -> None:
    alone = comparison(200, 30, 10)
    grouped = comparison(200, 30, 10, groups=[str(i // 10) for i in range(200)])
    assert grouped["mcnemar_p"] is None
    assert grouped["bootstrap_p"] > alone["bootstrap_p"]
    assert correct_p_values([grouped, grouped])[0]["mcnemar_corrected_p"] is None


@pytest.mark.parametrize("groups", [None, [str(i // 4) for i in range(300)]])
def test_the_difference_in_nll_is_of_how_well_classes_are_told_apart(groups: list[str] | None) -> None:
    labels = np.arange(300) % 3
    noise = np.random.default_rng(0).normal(size=(300, 3))
    better, worse = 3 * np.eye(3)[labels] + noise, 2 * np.eye(3)[labels] + noise
    difference, (low, high) = nll_difference(better, worse, labels, groups, THREE)
    assert 0 < low < difference < high
    assert nll_difference(10 * better, worse, labels, groups, THREE)[0] == pytest.approx(difference, abs=1e-3)
    assert nll_difference(worse, better, labels, groups, THREE)[0] == pytest.approx(-difference)
    same, interval = nll_difference(better, 10 * better, labels, groups, THREE)
    assert same == pytest.approx(0, abs=1e-3)
    assert interval == pytest.approx([0, 0], abs=2e-3)


def test_holm_against_a_worked_example() -> None:
    """0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, and never less than the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert [
        each["mcnemar_corrected_p"] for each in correct_p_values([comparison(200, 30, 10), comparison(200, 12, 10)])
    ] == [
        pytest.approx(2 * comparison(200, 30, 10)["mcnemar_p"]),
        pytest.approx(comparison(200, 12, 10)["mcnemar_p"]),
    ]


@pytest.mark.parametrize(
    ("only", "only_other", "begins", "needed"),
    [
        (30, 10, "Worth it here: a has ", None),
        (10, 30, "Not worth it here: a has ", None),
        (12, 8, "Not shown to be worth it: a has ", 1.959964**2 * (0.1 - 0.02**2) / 0.02**2),
        (8, 8, "Not shown to be worth it: a has ", None),
    ],
)
def test_the_verdict_follows_the_interval(only: int, only_other: int, begins: str, needed: float | None) -> None:
    models = {"a": {"accuracy": 0.6, "fit_seconds": 60.0}, "b": {"accuracy": 0.5, "fit_seconds": 0.25}}
    sentence = verdict(comparison(200, only, only_other), models, 200, "accuracy", THREE.measures["accuracy"])
    assert sentence.startswith(begins)
    assert "60.0 %" in sentence
    assert "60.0 s" in sentence
    if needed is None:
        assert "would tell" not in sentence
    else:
        assert sentence.endswith(f"about {needed:,.0f} test images would tell.")
