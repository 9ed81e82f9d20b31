import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from headstart.evaluation.trust import calibration
from headstart.targets.classes import Classes
from headstart.targets.likelihood import TEMPERATURE_RANGE, fit_temperature

FOUR = Classes(["a", "b", "c", "d"])


def drawn(n: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that are ``temperature`` times the true ones, and labels drawn from the true probabilities."""
    generator = np.random.default_rng(seed)
    true = 2 * generator.normal(size=(n, 4))
    labels = (softmax(true, axis=1).cumsum(1) > generator.random((n, 1))).argmax(1)
    return (temperature * true).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    assert fit_temperature(FOUR, *drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.03)


def test_one_end_of_the_search_where_the_minimum_is_beyond() -> None:
    logits = np.array([[9.0, 0], [0, 9]], np.float32)
    assert fit_temperature(Classes([*"ab"]), logits, np.array([1, 0])) == pytest.approx(TEMPERATURE_RANGE[1], rel=0.01)


def test_a_model_that_is_always_right_keeps_its_probabilities() -> None:
    assert fit_temperature(Classes([*"abc"]), 3 * np.eye(3, dtype=np.float32), np.arange(3)) == 1


def test_reliability_adds_up_and_its_error_is_torchmetrics() -> None:
    logits, labels = drawn(500, 3.0)
    found = FOUR.reliability(logits, labels, {"temperature": 1.0})["before"]
    expected = multiclass_calibration_error(torch.tensor(softmax(logits, axis=1)), torch.tensor(labels), 4, n_bins=15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-5)
    bins = found["bins"]
    assert sum(each["pictures"] for each in bins) == 500
    right = sum(each["accuracy"] * each["pictures"] for each in bins)
    assert right == pytest.approx((logits.argmax(1) == labels).sum(), abs=1e-3)
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in bins)
    certain = FOUR.reliability(np.array([[99, 0]], np.float32), np.array([0]), {"temperature": 1.0})["before"]
    assert [each["high"] for each in certain["bins"]] == [1.0]


def test_the_temperature_of_validation_mends_test() -> None:
    splits = {"validation": drawn(3000, 3.0), "test": drawn(3000, 3.0, seed=1)}
    fitted = FOUR.fit(*splits["validation"])
    found = calibration({k: v[0] for k, v in splits.items()}, {k: v[1] for k, v in splits.items()}, FOUR, fitted)
    assert found["temperature"] == pytest.approx(3, rel=0.1)
    assert found["before"]["ece"] > 0.1
    assert found["after"]["ece"] < 0.04
    assert found["after"]["nll"] < found["before"]["nll"]
