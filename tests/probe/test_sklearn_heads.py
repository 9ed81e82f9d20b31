"""The classical heads: they learn, are chosen by validation, and give finite log-probabilities of every class."""

import numpy as np
import pytest

from headstart.probe import sklearn_heads
from headstart.probe.logistic import cross_entropy
from headstart.probe.sklearn_heads import Fitted, Labelled, fit, reason_to_skip, temperature

HEADS = ("ridge", "knn", "tree", "forest", "boosting")
CLASSES = 4
L2S = [1.0, 1e-1, 1e-2, 1e-3]


def drawn(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)) -> Labelled:
    """Clouds about the unit vectors, which overlap; the last class of all has no image."""
    generator = np.random.default_rng(seed)
    labels = np.array(classes)[np.arange(count) % len(classes)]
    features = generator.normal(scale=0.5, size=(count, 6)) + 1
    features[np.arange(count), labels] += 1.5
    return Labelled(features.astype(np.float32), labels)


TRAIN, VALIDATION, UNSEEN = drawn(120, 0), drawn(60, 1), drawn(90, 2)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn_heads, "FOREST_TREES", 20)
    monkeypatch.setattr(sklearn_heads, "ITERATIONS", 15)


def fitted(name: str, train: Labelled = TRAIN, validation: Labelled = VALIDATION) -> Fitted:
    return fit(name, train, validation, CLASSES, L2S)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_and_gives_log_probabilities_of_every_class(name: str) -> None:
    head = fitted(name)
    found = head.predict(UNSEEN.features)
    assert found.shape == (90, CLASSES)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    assert np.mean(found.argmax(1) == UNSEEN.labels) > 0.8
    assert cross_entropy(found, UNSEEN.labels) < np.log(3)
    assert head.val_loss == pytest.approx(cross_entropy(head.predict(VALIDATION.features), VALIDATION.labels))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_the_same_every_time(name: str) -> None:
    one, two = fitted(name), fitted(name)
    assert one.settings == two.settings
    np.testing.assert_allclose(one.predict(UNSEEN.features), two.predict(UNSEEN.features), rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_the_columns_are_the_classes_where_train_lacks_one_in_the_middle(name: str) -> None:
    """And a validation image of it has a finite loss."""
    head = fitted(name, drawn(90, 0, (0, 2, 3)), drawn(60, 1, (0, 1, 2, 3)))
    found = head.predict(drawn(60, 3, (0, 2, 3)).features)
    assert np.mean(found.argmax(1) == drawn(60, 3, (0, 2, 3)).labels) > 0.8
    assert np.isfinite(head.val_loss)
    if name != "ridge":
        assert np.exp(found[:, 1]).max() < 1 / 90


@pytest.mark.parametrize("name", ["knn", "tree"])
def test_what_was_never_seen_has_laplaces_probability(name: str) -> None:
    floor = 1 / (len(TRAIN.labels) + CLASSES)
    found = np.exp(fitted(name).predict(UNSEEN.features))
    assert found[:, 3] == pytest.approx(floor, rel=0.05)  # a little less once they sum to 1
    assert found.min() > 0.95 * floor


@pytest.mark.parametrize("name", HEADS)
def test_settings_are_chosen_by_validation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of validation that say the opposite make the head cautious: the loss is the lowest of those tried."""
    head = fitted(name)
    shuffled = Labelled(VALIDATION.features, np.random.default_rng(0).permutation(VALIDATION.labels))
    other = fitted(name, TRAIN, shuffled)
    assert other.settings != head.settings
    assert cross_entropy(other.predict(shuffled.features), shuffled.labels) <= cross_entropy(
        head.predict(shuffled.features), shuffled.labels
    )
    monkeypatch.setattr(sklearn_heads, "FOREST_LEAVES", (40,))
    if name == "forest":
        assert fitted(name).settings == {"least_in_leaf": 40}


def test_more_neighbours_than_images_are_not_asked_for() -> None:
    assert fitted("knn", drawn(4, 0), VALIDATION).settings["neighbours"] <= 4


def test_boostings_iterations_are_those_of_the_lowest_loss() -> None:
    head = fitted("boosting")
    assert 1 <= head.settings["iterations"] <= 15
    shuffled = Labelled(VALIDATION.features, np.roll(VALIDATION.labels, 1))  # each one wrong
    assert fitted("boosting", TRAIN, shuffled).settings == {"depth": 3, "iterations": 1}


def test_temperature_is_where_the_loss_is_lowest() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3))
    cumulated = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).cumsum(1)
    labels = (generator.random((20_000, 1)) > cumulated).sum(1)
    for t in (0.05, 1.0, 20.0):
        assert temperature(logits * t, labels) == pytest.approx(t, rel=0.05)
    found = temperature(logits, labels)
    least = cross_entropy(logits / found, labels)
    assert least < min(cross_entropy(logits / (found * step), labels) for step in (0.9, 1.1))


def test_scores_that_are_always_right_have_a_temperature_too() -> None:
    found = temperature(np.eye(3), np.arange(3))
    assert sklearn_heads.TEMPERATURES[0] <= found < 1
    assert cross_entropy(np.eye(3) / found, np.arange(3)) == pytest.approx(0, abs=1e-9)


def test_with_many_classes_trees_are_skipped_and_the_reason_said() -> None:
    assert [name for name in HEADS if reason_to_skip(name, 50)] == []
    assert [name for name in HEADS if reason_to_skip(name, 51)] == ["boosting"]
    assert [name for name in HEADS if reason_to_skip(name, 101)] == ["tree", "forest", "boosting"]
    assert reason_to_skip("boosting", 51) == "51 classes: its time grows with them, and beyond 50 it is skipped"
