import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from headstart.targets.classes import Classes
from headstart.training.losses import warmup_cosine


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2])
    weights = Classes([*"abc"]).loss_weights(labels)
    assert weights.dtype == np.float32
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels), rel=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    assert np.isfinite(Classes([*"abcd"]).loss_weights(labels)).all()


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    warmup, total = 4, 24
    factors = [warmup_cosine(step, warmup, total) for step in range(total + 1)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[warmup] == 1
    assert factors[(warmup + total) // 2] == pytest.approx(0.5)
    assert factors[total] == pytest.approx(0, abs=1e-15)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert warmup_cosine(total + 5, warmup, total) == pytest.approx(0, abs=1e-15)


def test_a_schedule_without_warmup_and_one_of_nothing_else() -> None:
    assert warmup_cosine(0, 0, 10) == 1
    assert [warmup_cosine(step, 2, 2) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
