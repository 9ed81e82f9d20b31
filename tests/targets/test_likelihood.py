import numpy as np
import pytest

from headstart.targets.classes import Classes
from headstart.targets.likelihood import fit_temperature
from headstart.targets.target import mean_loss
from helpers.constants import negative_log_likelihood

THREE = Classes([*"abc"])


def test_the_loss_of_classes_is_the_mean_of_minus_log_p() -> None:
    two, logits = Classes([*"ab"]), np.array([[0.0, 0.0], [np.log(3), 0.0]], np.float32)
    assert mean_loss(two, logits, np.array([0, 1])) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert mean_loss(two, logits, np.array([0, 1]), 0.5) == pytest.approx((np.log(2) + np.log(10)) / 2)
    assert mean_loss(two, np.array([[1e4, -1e4]], np.float32), np.array([1])) == pytest.approx(2e4)


def test_temperature_is_where_the_loss_is_lowest() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3))
    cumulated = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).cumsum(1)
    labels = (generator.random((20_000, 1)) > cumulated).sum(1)
    for t in (0.05, 1.0, 20.0):
        assert fit_temperature(THREE, logits * t, labels) == pytest.approx(t, rel=0.05)
    found = fit_temperature(THREE, logits, labels)
    least = negative_log_likelihood(logits / found, labels)
    assert least < min(negative_log_likelihood(logits / (found * step), labels) for step in (0.9, 1.1))
