"""The classical heads: they learn, are chosen by validation, and give finite log-probabilities of every class."""

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors._base import KNeighborsMixin
from sklearn.tree import DecisionTreeClassifier

from headstart.probe import sklearn_heads
from headstart.probe.logistic import linear_path, ridge_path
from headstart.probe.sklearn_heads import (
    HEADS,
    NEIGHBOURS,
    SIZE_LIMITS,
    FittedHead,
    LabelledFeatures,
    fit_head,
    reason_to_leave_out,
    reason_to_skip,
)
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import Target, mean_loss
from helpers.constants import best_constant, negative_log_likelihood

CLASSES = 4
TARGET = Classes("abcd")
L2S = [1.0, 1e-1, 1e-2, 1e-3]


def drawn(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)) -> LabelledFeatures:
    """Clouds about the unit vectors, which overlap; the last class of all has no image."""
    generator = np.random.default_rng(seed)
    labels = np.array(classes)[np.arange(count) % len(classes)]
    features = generator.normal(scale=0.5, size=(count, 6)) + 1
    features[np.arange(count), labels] += 1.5
    return LabelledFeatures(features.astype(np.float32), labels)


def parts(images: LabelledFeatures) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return images.features, images.values


TRAIN, VALIDATION, UNSEEN = drawn(120, 0), drawn(60, 1), drawn(90, 2)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn_heads, "FOREST_TREES", 20)
    monkeypatch.setattr(sklearn_heads, "BOOSTING_ITERATIONS", 15)


def fitted(name: str, train: LabelledFeatures = TRAIN, validation: LabelledFeatures = VALIDATION) -> FittedHead:
    return fit_head(name, train, validation, TARGET, ridge_path(train.features, train.values, TARGET, L2S))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_and_gives_log_probabilities_of_every_class(name: str) -> None:
    head = fitted(name)
    found = head.predict(UNSEEN.features)
    assert found.shape == (90, CLASSES)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    assert np.mean(found.argmax(1) == UNSEEN.values) > 0.8
    assert negative_log_likelihood(found, UNSEEN.values) < np.log(3)
    assert head.val_loss == pytest.approx(negative_log_likelihood(head.predict(VALIDATION.features), VALIDATION.values))


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
    assert np.mean(found.argmax(1) == drawn(60, 3, (0, 2, 3)).values) > 0.8
    assert np.isfinite(head.val_loss)
    if name != "ridge":
        assert np.exp(found[:, 1]).max() < 1 / 90


@pytest.mark.parametrize("name", ["knn", "tree"])
def test_what_was_never_seen_has_laplaces_probability(name: str) -> None:
    floor = 1 / (len(TRAIN.values) + CLASSES)
    found = np.exp(fitted(name).predict(UNSEEN.features))
    assert found[:, 3] == pytest.approx(floor, rel=0.05)  # a little less once they sum to 1
    assert found.min() > 0.95 * floor


@pytest.mark.parametrize("name", HEADS)
def test_settings_are_chosen_by_validation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of validation that say the opposite make the head cautious: the loss is the lowest of those tried."""
    head = fitted(name)
    shuffled = LabelledFeatures(VALIDATION.features, np.random.default_rng(0).permutation(VALIDATION.values))
    other = fitted(name, TRAIN, shuffled)
    assert other.settings != head.settings
    assert negative_log_likelihood(other.predict(shuffled.features), shuffled.values) <= negative_log_likelihood(
        head.predict(shuffled.features), shuffled.values
    )
    monkeypatch.setattr(sklearn_heads, "FOREST_LEAVES", (40,))
    if name == "forest":
        assert fitted(name).settings == {"least_in_leaf": 40}


def test_more_neighbours_than_images_are_not_asked_for() -> None:
    assert fitted("knn", drawn(4, 0), VALIDATION).settings["neighbours"] <= 4


@pytest.mark.parametrize("kind", ["class", "labels", "number"])
def test_neighbours_are_searched_once_and_chosen_as_by_a_search_for_each_number(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where responses are unknown, once for each output; some validation images are training images, at distance 0."""
    target, unknown, train, validation = OTHERS.get(kind, TARGET), kind == "labels", TRAIN, VALIDATION
    if kind != "class":
        train, validation = (drawn_of(kind, count, i, 0.4 * unknown) for i, count in enumerate((300, 150)))
    validation = LabelledFeatures(
        np.concatenate([train.features[:20], validation.features]),
        np.concatenate([train.values[:20], validation.values]),
    )
    searches = list[int]()

    def counted(self: KNeighborsMixin, features: NDArray[np.float32]) -> object:
        searches.append(self.n_neighbors)
        return search(self, features)

    search = KNeighborsMixin.kneighbors
    monkeypatch.setattr(KNeighborsMixin, "kneighbors", counted)
    losses, chosen = dict[int, float](), fit_head("knn", train, validation, target, [])
    assert searches == [100] * (target.outputs if unknown else 1)
    for k in NEIGHBOURS:
        monkeypatch.setattr(sklearn_heads, "NEIGHBOURS", (k,))
        head = fit_head("knn", train, validation, target, [])
        losses[k] = mean_loss(target, head.predict(validation.features), validation.values)
        assert head.val_loss == losses[k]
    assert chosen.settings == {"neighbours": min(losses, key=losses.__getitem__)}
    assert chosen.val_loss == min(losses.values())
    assert mean_loss(target, chosen.predict(validation.features), validation.values) == chosen.val_loss


def test_boostings_iterations_are_those_of_the_lowest_loss() -> None:
    head = fitted("boosting")
    assert 1 <= head.settings["iterations"] <= 15
    shuffled = LabelledFeatures(VALIDATION.features, np.roll(VALIDATION.values, 1))  # each one wrong
    assert fitted("boosting", TRAIN, shuffled).settings == {"depth": 3, "iterations": 1}


def test_ridges_temperature_is_where_the_validation_loss_is_lowest() -> None:
    """Whatever the size of the scores, which gets smaller with a larger λ."""
    for l2 in (1e-3, 1.0, 10.0):
        head = fit_head("ridge", TRAIN, VALIDATION, TARGET, ridge_path(*parts(TRAIN), TARGET, [l2]))
        log_probabilities = head.predict(VALIDATION.features)
        losses = [negative_log_likelihood(log_probabilities / step, VALIDATION.values) for step in (0.9, 1.1)]
        assert head.val_loss < min(losses)


@pytest.mark.parametrize("count", [9, 42])
def test_ridge_is_not_overconfident_where_validation_has_no_error(count: int) -> None:
    """There each smaller temperature has a lower validation loss, and one at its limit costs nats for every test error.

    The logistic head is fitted on the same images, has as many errors, and needs no temperature: ridge may lose twice
    as much. Per image, (greatest score - the label's) / σ² + log(classes) bounds the loss; σ² is 0.02 to 0.04 here.
    """
    pool, test = drawn(600, 1), drawn(900, 2)
    scores = [pool.features @ weight.T + bias for _, weight, bias in ridge_path(*parts(TRAIN), TARGET, L2S)]
    right = np.flatnonzero(np.all([each.argmax(1) == pool.values for each in scores], axis=0))[:count]
    separable = LabelledFeatures(pool.features[right], pool.values[right])
    head = fitted("ridge", TRAIN, separable)
    found = head.predict(test.features)
    assert (found.argmax(1) != test.values).sum() > 10

    logistic = linear_path(*parts(TRAIN), TARGET, L2S)
    losses = [negative_log_likelihood(test.features @ weight.T + bias, test.values) for _, weight, bias in logistic]
    assert negative_log_likelihood(found, test.values) < 2 * min(losses) < np.log(CLASSES)
    worst = -found[np.arange(900), test.values].min()
    spread = np.ptp(found, axis=1).max() * head.settings["temperature"]
    assert worst <= spread / 0.02 + np.log(CLASSES)


def test_ridge_without_any_residual_has_finite_probabilities() -> None:
    """One class alone: the bias is the target itself."""
    one = LabelledFeatures(np.zeros((5, 2), np.float32), np.zeros(5, np.int64))
    assert fitted("ridge", one, one).val_loss == pytest.approx(0, abs=1e-6)


def classes(count: int) -> Classes:
    return Classes([str(i) for i in range(count)])


def test_with_many_classes_trees_are_skipped_and_the_reason_said() -> None:
    assert [name for name in HEADS if reason_to_skip(name, classes(50))] == []
    assert [name for name in HEADS if reason_to_skip(name, classes(51))] == ["boosting"]
    assert [name for name in HEADS if reason_to_skip(name, classes(101))] == ["tree", "forest", "boosting"]
    assert [name for name in HEADS if reason_to_leave_out(name, 1, SIZE_LIMITS["boosting"], 1)] == []
    assert [name for name in HEADS if reason_to_leave_out(name, 1, SIZE_LIMITS["boosting"] + 1, 1)] == ["boosting"]
    assert [name for name in HEADS if reason_to_leave_out(name, 1_280_000, 2048, 1000) is None] == ["ridge"]
    assert (
        reason_to_skip("boosting", classes(51)) == "51 classes: its time grows with them, and beyond 50 it is skipped"
    )


# Other targets.

OTHERS: dict[str, Target] = {
    "labels": Labels(["a", "b", "c"]),
    "number": Numbers(["x", "y"], ["", ""], [0.0, 10.0], [1.0, 5.0]),
    "grade": Grades(["none", "mild", "bad", "worst"]),
}


def drawn_of(kind: str, count: int, seed: int, unknown: float = 0.0) -> LabelledFeatures:
    """Six features, the first three of which say it, but for noise."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 6)).astype(np.float32)
    noisy = features[:, :3] + generator.normal(scale=0.5, size=(count, 3))
    if kind == "grade":
        return LabelledFeatures(features, np.searchsorted([-1.0, 0.0, 1.0], noisy[:, 0]))
    of_kind = noisy > [-0.5, 0, 1] if kind == "labels" else noisy[:, :2] * [1, 5] + [0, 10]
    values = of_kind.astype(np.float32)
    values[generator.random(values.shape) < unknown] = np.nan
    return LabelledFeatures(features, values)


@pytest.mark.parametrize("unknown", [0.0, 0.4])
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_every_target_from_what_is_known(name: str, kind: str, unknown: float) -> None:
    """Its loss on new images is below that of the best constant, and its outputs are the target's."""
    target = OTHERS[kind]
    if reason_to_skip(name, target) or (kind == "grade" and unknown):
        return
    train, validation, unseen = (drawn_of(kind, count, i, unknown) for i, count in enumerate((300, 150, 400)))
    head = fit_head(name, train, validation, target, ridge_path(train.features, train.values, target, L2S))
    found = head.predict(unseen.features)
    assert found.shape == (400, target.outputs)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    constant = np.tile(best_constant(target, train.values), (400, 1))
    assert mean_loss(target, found, unseen.values) < (0.95 if name == "tree" else 0.9) * mean_loss(
        target, constant, unseen.values
    )
    assert head.val_loss == pytest.approx(mean_loss(target, head.predict(validation.features), validation.values))


@pytest.mark.parametrize("name", ["tree", "forest"])
def test_a_regressor_of_one_label_is_scikit_learns_classifier(name: str) -> None:
    """Squared errors of 0 and 1 are half of Gini's impurity; what was never seen has Laplace's probability."""
    target = Labels(["a"])
    train, validation = (drawn_of("labels", count, i) for i, count in enumerate((300, 150)))
    train, validation = (LabelledFeatures(each.features, each.values[:, :1]) for each in (train, validation))
    head = fit_head(name, train, validation, target, [])
    leaf = head.settings["least_in_leaf"]
    kinds = {"tree": DecisionTreeClassifier, "forest": partial(RandomForestClassifier, 20)}
    model = kinds[name](min_samples_leaf=leaf, random_state=0).fit(train.features, train.values[:, 0])
    floor = 1 / 302
    expected = logit(np.clip(model.predict_proba(validation.features)[:, 1], floor, 1 - floor))
    found = head.predict(validation.features)[:, 0]
    assert np.mean(np.abs(found - expected) < 1e-3) > 0.9  # equal splits are broken by chance


def test_ridges_logit_of_labels_is_the_discriminants() -> None:
    """Two normal clouds along one feature: slope and offset of Bayes' rule."""
    generator = np.random.default_rng(0)
    there = generator.random(4000) < 0.2
    features = (generator.normal(size=4000) + 2 * there).astype(np.float32)[:, None]
    images = LabelledFeatures(features, there.astype(np.float32)[:, None])
    target = Labels(["a"])
    head = fit_head("ridge", images, images, target, ridge_path(features, images.values, target, [1e-3]))
    found = head.predict(np.array([[0.0], [1.0], [3.0]], np.float32))[:, 0]
    assert found == pytest.approx(np.log(0.25) + 2 * (np.array([0, 1, 3]) - 1), abs=0.25)


def test_ridge_of_numbers_is_the_probe_and_skipped() -> None:
    assert reason_to_skip("ridge", OTHERS["number"]) == "it is the probe's own head: least squares and the same penalty"
    assert [name for name in HEADS if reason_to_skip(name, OTHERS["labels"])] == []
    many = Labels([str(i) for i in range(51)])
    assert reason_to_leave_out("ridge", 100_000, 2048, 30, 0) is None
    assert str(reason_to_leave_out("ridge", 100_000, 2048, 30, 30)).startswith("it would take long")
    assert reason_to_skip("boosting", many) == "51 outputs: its time grows with them, and beyond 50 it is skipped"
