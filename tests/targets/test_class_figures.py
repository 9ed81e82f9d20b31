import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from headstart.core import blocks
from headstart.targets.class_figures import mean_auroc
from helpers.resampled import figures_of
from helpers.torchmetrics_figures import torchmetrics_figures, torchmetrics_per_class

CLASSES = ["ant", "bee", "cow", "dog", "elk", "fox"]
ABSENT, NEVER_PREDICTED = 4, 5


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Random logits and labels: one class is predicted but never occurs, another occurs but is never predicted."""
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 3, 5], 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    logits = generator.normal(size=(300, 6)).astype(np.float32)
    logits[np.arange(300), labels] += 1.5
    logits[:, NEVER_PREDICTED] -= 10
    return logits, labels


def test_figures_are_those_of_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = answers
    predicted, present = logits.argmax(1), np.unique(labels)
    assert ABSENT in predicted
    assert NEVER_PREDICTED not in predicted
    figures = figures_of(logits, labels, CLASSES, top_k=3)

    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    _, recall, f1, _ = reference.precision_recall_fscore_support(labels, predicted, labels=present, zero_division=0.0)
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-6)
    assert figures["balanced_accuracy"] == pytest.approx(recall.mean(), abs=1e-6)
    assert figures["macro_f1"] == pytest.approx(f1.mean(), abs=1e-6)
    top_3 = reference.top_k_accuracy_score(labels, logits, k=3, labels=range(6))
    assert figures["top_3_accuracy"] == pytest.approx(top_3, abs=1e-6)
    assert figures["nll"] == pytest.approx(reference.log_loss(labels, probabilities, labels=range(6)), abs=1e-6)
    assert figures["brier"] == pytest.approx(((probabilities - np.eye(6)[labels]) ** 2).sum(1).mean(), abs=1e-6)
    # The area is the fraction of pairs of an image of the class and another that are in the right order.
    own = [(probabilities[labels == c, c][:, None], probabilities[labels != c, c]) for c in present]
    assert figures["auroc"] == pytest.approx(np.mean([(a > b).mean() for a, b in own]), abs=1e-6)


def test_per_class_figures_are_those_of_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = answers
    per_class = figures_of(logits, labels, CLASSES, top_k=3)["per_class"]
    expected = np.array(
        reference.precision_recall_fscore_support(labels, logits.argmax(1), labels=range(6), zero_division=0.0)
    ).T
    assert [entry["class"] for entry in per_class] == CLASSES
    for entry, (precision, recall, f1, support) in zip(per_class, expected, strict=True):
        assert entry["support"] == support
        for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            assert entry[name] is None or entry[name] == pytest.approx(value, abs=1e-6)
    assert [name for name, value in per_class[ABSENT].items() if value is None] == ["recall", "f1"]
    assert [name for name, value in per_class[NEVER_PREDICTED].items() if value is None] == ["precision"]


def test_figures_are_those_of_torchmetrics(answers: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = answers
    found, per_class = figures_of(logits, labels, CLASSES, top_k=3), torchmetrics_per_class(logits, labels)
    expected = torchmetrics_figures(logits, labels, 3)
    assert set(expected) == set(found) - {"auroc", "per_class"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for name, values in per_class.items():
        assert [entry[name] or 0 for entry in found["per_class"]] == pytest.approx(values.tolist(), abs=1e-6)


def test_top_k_is_left_out_where_every_class_would_count(answers: tuple[np.ndarray, np.ndarray]) -> None:
    assert "top_5_accuracy" in figures_of(*answers, CLASSES, top_k=5)
    assert not any(name.startswith("top_") for name in figures_of(*answers, CLASSES, top_k=6))


def test_equally_likely_classes_count_for_the_top_k_in_their_order() -> None:
    """As votes and trees have them; the first is the predicted class, so the top 1 is the accuracy."""
    logits, labels = np.zeros((4, 4), np.float32), np.arange(4)
    figures = figures_of(logits, labels, CLASSES[:4], top_k=1)
    assert figures["top_1_accuracy"] == figures["accuracy"] == 0.25
    assert figures_of(logits, labels, CLASSES[:4], top_k=3)["top_3_accuracy"] == 0.75


def test_two_classes_one_absent_and_logits_that_are_sure_give_json_without_nan() -> None:
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    figures = figures_of(logits, np.array([0, 0]), ["a", "b"], top_k=3)
    json.dumps(figures, allow_nan=False)
    assert (figures["accuracy"], figures["balanced_accuracy"], figures["macro_f1"], figures["nll"]) == (1, 1, 1, 0)
    assert (figures["brier"], figures["ece"], figures["auroc"]) == (0, 0, None)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_auroc_is_scikit_learns_to_the_last_digits(monkeypatch: pytest.MonkeyPatch, *, rounded: bool) -> None:
    """With equal scores too, and logits so sure that probabilities are 0 and 1; in blocks of 8 images."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 8 * (5 + blocks.VALUES_BESIDE))
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 300)  # the fifth does not occur
    logits = (20 * generator.normal(size=(300, 5)) + 30 * np.eye(5)[labels]).astype(np.float32)
    if rounded:
        logits = (logits / np.float32(20)).round()
    probabilities = softmax(logits.astype(np.float64), axis=1)
    expected = [reference.roc_auc_score(labels == i, probabilities[:, i]) for i in range(4)]
    assert mean_auroc(logits, labels) == pytest.approx(np.mean(expected), abs=1e-12)
