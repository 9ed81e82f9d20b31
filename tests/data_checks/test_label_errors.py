from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.data_checks import label_errors as module
from headstart.data_checks.label_errors import (
    FOLDS,
    choose_sample,
    first_groups,
    out_of_fold_expectations,
)
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from headstart.targets.target import LabelError, Target, Values

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


# Other targets.


def errors_of(target: Target, features: NDArray[np.float32], values: Values) -> list[LabelError]:
    sample = choose_sample(first_groups(target, values), features.shape[1], target.outputs)
    groups = np.arange(len(values), dtype=np.uint64)
    return target.find_errors(values, out_of_fold_expectations(features.__getitem__, values, target, groups, sample))


def test_swapped_labels_of_several_are_found_one_by_one() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1000, 8)).astype(np.float32)
    values = (8 * features[:, :3] + generator.normal(size=(1000, 3)) > [-4, 0, 8]).astype(np.float32)
    values[generator.random(values.shape) < 0.1] = np.nan
    swapped = [
        (i, j)
        for i, j in zip(range(0, 1000, 40), (np.arange(25) % 3).tolist(), strict=True)
        if not np.isnan(values[i, j])
    ]
    for i, j in swapped:
        values[i, j] = 1 - values[i, j]
    found = errors_of(Labels("abc"), features, values)
    listed = {(each.place, "abc".index(each.label.removeprefix("not "))): each for each in found}
    assert len(listed.keys() & set(swapped)) >= 0.5 * len(swapped)
    assert len(listed.keys() - set(swapped)) <= 0.01 * values.size
    for (i, j), each in listed.items():
        texts = ("abc"[j], f"not {'abc'[j]}")
        assert (each.label, each.suggested) == (texts if values[i, j] else texts[::-1])
        assert each.figures[0] == pytest.approx(1 - each.figures[1])
        assert each.figures[0] < 0.05


def test_an_unknown_label_is_no_error() -> None:
    target, values = Labels("ab"), np.array([[1, np.nan], [0, 1], [1, 0], [0, 1]], np.float32)
    expected = np.array([[0.9, 0.0], [0.001, 0.9], [0.9, 0.1], [0.99, 0.9]])
    (error,) = target.find_errors(values, [expected[:2], expected[2:]])
    assert (error.place, error.label, error.suggested) == (3, "not a", "a")
    assert error.figures == pytest.approx((0.01, 0.99))


def test_swapped_numbers_are_found_by_their_residuals() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 8)).astype(np.float32)
    values = (features[:, :2] * [10, 1] + generator.normal(size=(600, 2)) * [1, 0.1] + [50, 0]).astype(np.float32)
    values[::7, 1] = np.nan
    values[100, 0], values[200, 0], values[302, 1] = 500, 20, 7
    target = Numbers(["age", "depth"], ["years", ""], [0.0] * 2, [1.0] * 2).trained(values)
    found = errors_of(target, features, values)
    assert {(each.place, each.label) for each in found} == {
        (100, "age 500 years"),
        (200, "age 20 years"),
        (302, "depth 7"),
    }
    assert min(each.figures[0] for each in found) >= 4
    assert target.error_figures == ("deviation",)


def test_distant_grades_stand_first_and_neighbours_of_a_doubtful_one_are_none() -> None:
    """Expected are the probabilities of being above each of three; the frequencies of the four grades are equal."""
    target, values = Grades(["none", "mild", "bad", "worst"]), np.array([0, 1, 2, 3, 3, 0, 1, 2])
    expected = np.array([[1, 1, 0.99], [0.9, 0.6, 0.1], [0.999, 0.99, 0.01], [0.99, 0.01, 0.001]])
    agreeing = (values[4:, None] > np.arange(3)).astype(float)
    found = target.find_errors(values, [expected, agreeing])
    assert [(each.place, each.label, each.suggested) for each in found] == [(0, "none", "worst"), (3, "worst", "mild")]
    assert found[0].figures == pytest.approx((0.0, 0.99))
    assert found[1].figures == pytest.approx((0.001, 0.98))


def test_no_grade_is_judged_by_a_head_that_saw_it() -> None:
    generator = np.random.default_rng(0)
    features, values = generator.normal(size=(300, 150)).astype(np.float32), generator.integers(0, 4, 300)
    target = Grades(["none", "mild", "bad", "worst"])
    sample, groups = choose_sample(values, 150, 3), np.arange(300, dtype=np.uint64)
    blocks = out_of_fold_expectations(features.__getitem__, values, target, groups, sample)
    medians = (np.concatenate(list(blocks)) > 0.5).sum(axis=1)
    assert abs(np.corrcoef(medians, values)[0, 1]) < 0.3
