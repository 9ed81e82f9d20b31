from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.data_checks import label_errors as module
from headstart.data_checks.label_errors import (
    FOLDS,
    choose_sample,
    out_of_fold_expectations,
)
from headstart.targets.classes import Classes
from headstart.targets.target import LabelError

CLASSES = 10


def clusters(n: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.arange(n) % CLASSES
    centres = 4 * np.eye(CLASSES, 16)
    return (centres[labels] + generator.normal(size=(n, 16))).astype(np.float32), labels


def out_of_fold(
    features: NDArray[np.float32], labels: NDArray[np.int64], group_ids: NDArray[np.uint64], classes: int
) -> NDArray[np.float32]:
    sample, target = choose_sample(labels, features.shape[1], classes), of_classes(classes)
    return np.concatenate(list(out_of_fold_expectations(features.__getitem__, labels, target, group_ids, sample)))


def of_classes(count: int) -> Classes:
    return Classes([str(i) for i in range(count)])


def find_label_errors(labels: NDArray[np.int64], probabilities: list[NDArray[Any]]) -> list[LabelError]:
    return of_classes(probabilities[0].shape[1]).find_errors(labels, probabilities)


def test_swapped_labels_are_found_and_few_others() -> None:
    generator = np.random.default_rng(0)
    features, labels = clusters(2000, generator)
    given, swapped = labels.copy(), generator.choice(2000, 50, replace=False)
    given[swapped] = (labels[swapped] + generator.integers(1, CLASSES, 50)) % CLASSES
    probabilities = out_of_fold(features, given, np.arange(2000, dtype=np.uint64), CLASSES)
    found = find_label_errors(given, [probabilities])
    places = {each.place for each in found}
    assert len(places & set(swapped.tolist())) >= 0.8 * len(swapped)
    assert len(places - set(swapped.tolist())) <= 0.01 * 2000
    hits = [each for each in found if each.place in swapped]
    assert np.mean([each.suggested == str(labels[each.place]) for each in hits]) > 0.95
    for each in found:
        assert each.label == str(given[each.place])
        assert each.figures[0] == pytest.approx(probabilities[each.place, given[each.place]])
        assert each.figures[1] == pytest.approx(probabilities[each.place].max())


def test_heads_of_a_sample_judge_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a head that did not see it: 50 labels are swapped, more of them outside the sample than in it."""
    monkeypatch.setattr(module, "MAX_SAMPLE", 600)
    monkeypatch.setattr(module, "BLOCK_VALUES", 16 * 300)
    generator = np.random.default_rng(0)
    features, labels = clusters(2000, generator)
    given, swapped = labels.copy(), generator.choice(2000, 50, replace=False)
    given[swapped] = (labels[swapped] + generator.integers(1, CLASSES, 50)) % CLASSES
    sample = choose_sample(given, 16, CLASSES)
    assert len(set(sample.tolist())) == len(sample) == 600
    assert np.ptp(np.bincount(given[sample])) <= 0.05 * 600
    places = {
        each.place
        for each in find_label_errors(given, [out_of_fold(features, given, np.arange(2000, dtype=np.uint64), CLASSES)])
    }
    assert len(places & set(swapped.tolist())) >= 0.8 * len(swapped)
    assert len(places - set(swapped.tolist())) <= 0.01 * 2000


def test_many_features_and_classes_make_the_sample_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(1000) % CLASSES
    monkeypatch.setattr(module, "MAX_WORK", 16 * CLASSES * 100)
    assert choose_sample(labels, 16, CLASSES).shape == (100,)
    assert choose_sample(labels, 8, CLASSES).shape == (200,)


def test_the_worst_stands_first_by_the_class_share() -> None:
    """The bound is a twentieth of the frequency: 0.025 of a class that half of the images have, 0.0125 of a quarter."""
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.02, 0.9, 0.08], [0.03, 0.9, 0.07], [0.97, 0.012, 0.018], [0.97, 0.017, 0.013]])
    found = find_label_errors(labels, [probabilities])
    assert [(each.place, each.suggested) for each in found] == [(0, "1"), (2, "0")]
    assert find_label_errors(labels[:0], [probabilities[:0]]) == []


def test_no_image_is_judged_by_a_head_that_saw_it() -> None:
    """Random labels: a head that saw them would believe them."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(90, 60)).astype(np.float32)
    labels = generator.integers(0, 2, 90)
    probabilities = out_of_fold(features, labels, np.arange(90, dtype=np.uint64), 2)
    assert abs((probabilities.argmax(1) == labels).mean() - 0.5) < 0.2
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_images_of_one_unit_are_in_one_fold() -> None:
    """Each image is there twice: with its copy in another fold even random labels would be found out."""
    generator = np.random.default_rng(0)
    features = np.repeat(generator.normal(size=(60, 80)), 2, axis=0).astype(np.float32)
    labels = np.repeat(generator.integers(0, 2, 60), 2)
    apart = out_of_fold(features, labels, np.repeat(np.arange(60, dtype=np.uint64), 2), 2)
    assert abs((apart.argmax(1) == labels).mean() - 0.5) < 0.25


def test_a_class_in_one_unit_alone_is_not_judged() -> None:
    features, labels = clusters(90, np.random.default_rng(0))
    labels[0] = CLASSES  # a class of one image
    probabilities = out_of_fold(features, labels, np.arange(90, dtype=np.uint64), CLASSES + 1)
    assert probabilities[0].tolist() == [0] * CLASSES + [1]
    assert FOLDS == 3


def test_features_that_say_nothing_make_no_label_errors() -> None:
    labels = np.arange(30) % 3
    probabilities = out_of_fold(np.ones((30, 5), np.float32), labels, np.arange(30, dtype=np.uint64), 3)
    assert np.isfinite(probabilities).all()
    assert find_label_errors(labels, [probabilities]) == []
