import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from headstart.evaluation.bootstrap import assign_units
from headstart.evaluation.trust import conformal
from headstart.targets.classes import METHODS, Classes, nonconformity
from headstart.targets.conformal import LEVELS
from headstart.targets.number import Numbers

FIVE = Classes(list("abcde"))


def drawn(n: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    true = 1.5 * generator.normal(size=(n, 5))
    labels = (softmax(true, axis=1).cumsum(1) > generator.random((n, 1))).argmax(1)
    return (2 * true).astype(np.float32), labels  # overconfident


def test_sets_hold_the_label_as_often_as_promised() -> None:
    """Over 300 draws of both splits: LAC between the level and 1/(n + 1) above it, APS at least the level."""
    generator = np.random.default_rng(0)
    held = []
    for _ in range(300):
        (logits, labels), (test_logits, test_labels) = drawn(100, generator), drawn(100, generator)
        found = conformal(
            {"validation": logits, "test": test_logits}, {"validation": labels, "test": test_labels}, FIVE
        )
        held.append([each["coverage"] for each in found])
    kinds = [(each["method"], each["level"]) for each in found]
    for (method, level), mean, error in zip(kinds, np.mean(held, 0), np.std(held, 0) / math.sqrt(300), strict=True):
        assert mean > level - 3 * error, (method, level)
        if method == "LAC":
            assert mean < level + 1 / 101 + 3 * error, level


def test_what_is_measured_agrees_with_the_sets() -> None:
    generator = np.random.default_rng(1)
    (logits, labels), (test_logits, test_labels) = drawn(200, generator), drawn(90, generator)
    test_labels[test_labels == 4] = 3
    found = conformal({"validation": logits, "test": test_logits}, {"validation": labels, "test": test_labels}, FIVE)
    assert [(each["method"], each["level"]) for each in found] == [(m, level) for m in METHODS for level in LEVELS]
    for each in found:
        sets = nonconformity(test_logits, each["method"]) <= each["threshold"]
        held = sets[np.arange(90), test_labels]
        assert each["coverage"] == pytest.approx(held.mean(), abs=1e-6)
        assert each["coverage_interval"][0] < each["coverage"] < each["coverage_interval"][1]
        assert sum(int(size) * count for size, count in each["sizes"].items()) == sets.sum()
        assert each["mean_size"] == pytest.approx(sets.sum() / 90, abs=1e-4)
        assert each["empty"] == pytest.approx((sets.sum(1) == 0).mean(), abs=1e-6)
        assert [entry["pictures"] for entry in each["per_class"]] == np.bincount(test_labels, minlength=5).tolist()
        assert each["per_class"][1]["coverage"] == pytest.approx(held[test_labels == 1].mean(), abs=1e-6)
        assert each["per_class"][4]["coverage"] is None
        assert each["method"] == "LAC" or each["empty"] == 0


def test_too_few_images_for_a_level_mean_all_classes() -> None:
    logits, labels = drawn(12, np.random.default_rng(0))
    found = conformal({"validation": logits, "test": logits}, {"validation": labels, "test": labels}, FIVE)
    at_95 = [each for each in found if each["level"] == 0.95]
    assert [(each["threshold"], each["coverage"], each["mean_size"]) for each in at_95] == [(None, 1, 5), (None, 1, 5)]


def test_each_number_is_measured_in_its_own_tenths() -> None:
    """The second number is off by far more than it was on validation, and unknown of every other image."""
    target = Numbers(["age", "depth"], ["years", "m"], [0.0, 0.0], [1.0, 2.0])
    generator = np.random.default_rng(0)
    outputs = {split: generator.normal(size=(200, 2)) for split in ("validation", "test")}
    noise = {split: generator.normal(0, 0.2, (200, 2)) for split in outputs}
    noise["test"][:, 1] += 3
    values = {s: np.asarray((each + noise[s]) * target.scale, np.float32) for s, each in outputs.items()}
    values["test"][::2, 1] = np.nan
    units = assign_units(np.zeros(200, np.int64), None)
    for entry in conformal(outputs, values, target, units):
        of_number = {
            name: [row for row in entry["per_class"] if row["class"].startswith(name)] for name in target.names
        }
        assert [sum(row["pictures"] for row in rows) for rows in of_number.values()] == [200, 100]
        age, depth = (
            sum(row["coverage"] * row["pictures"] for row in rows) / sum(row["pictures"] for row in rows)
            for rows in of_number.values()
        )
        assert age > 0.8
        assert depth < 0.05
        low, high = entry["coverage_interval"]
        assert low < entry["coverage"] < high
        assert entry["coverage"] == pytest.approx((100 * age + 100 * (age + depth) / 2) / 200, abs=0.02)
        assert "sizes" not in entry
