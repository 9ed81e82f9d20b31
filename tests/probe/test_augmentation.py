"""Changes are judged by what they do to the probe's answers, image by image."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.models.head import Head
from headstart.probe.augmentation import FEWEST_IMAGES, MARGIN, judge_changes
from headstart.targets.classes import Classes
from headstart.targets.grade import Grades
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers

if TYPE_CHECKING:
    from headstart.targets.target import Target, Values

CLASSES = ["left", "right", "up", "down"]
HEAD = Head(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), 0.01)  # features are logits


def images(count: int, noise: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of images in turn of each class; the same classes with another ``noise`` are other views of them."""
    labels = np.arange(count) % 4
    return (3 * np.eye(4)[labels] + np.random.default_rng(noise).normal(size=(count, 4))).astype(np.float32), labels


def verdict(before: NDArray[np.float32], after: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    evidence = judge_changes(HEAD, before, {"hflip": after}, labels, Classes(CLASSES))
    assert evidence["images"] == len(labels)
    assert evidence["reason"] is None
    found: dict[str, Any] = evidence["changes"]["hflip"]
    return found


def test_another_view_as_good_as_the_first_is_kept() -> None:
    before, labels = images(200, 0)
    found = verdict(before, images(200, 1)[0], labels)
    assert found["kept"]
    assert found["interval"][0] < found["rise"] < found["interval"][1] < 0  # two views are better than one


def test_a_change_without_effect_is_kept() -> None:
    before, labels = images(200, 0)
    found = verdict(before, before, labels)
    assert found["kept"]
    assert found["rise"] == 0
    assert found["changed_accuracy"] == found["accuracy"]


def test_figures_are_those_of_the_averaged_logits() -> None:
    before, labels = images(200, 0)
    after = images(200, 1)[0]
    found = verdict(before, after, labels)

    def losses(logits: NDArray[np.floating]) -> NDArray[np.float64]:
        odds = np.exp(logits.astype(np.float64))
        return np.asarray(-np.log(odds[np.arange(200), labels] / odds.sum(1)))

    rise = losses((before + after) / 2) - losses(before)
    assert found["loss"] == pytest.approx(losses(before).mean())
    assert found["rise"] == pytest.approx(rise.mean())
    assert found["interval"][1] - found["rise"] == pytest.approx(1.96 * rise.std(ddof=1) / 200**0.5, rel=1e-4)
    assert found["accuracy"] == (before.argmax(1) == labels).mean()
    assert found["changed_accuracy"] == (after.argmax(1) == labels).mean()


def test_what_leads_to_other_classes_is_refused() -> None:
    before, labels = images(200, 0)
    after = images(200, 1)[0][:, [1, 0, 3, 2]]
    found = verdict(before, after, labels)
    assert not found["kept"]
    assert found["changed_accuracy"] < 0.2


def test_what_cannot_be_told_from_harm_is_refused() -> None:
    """By 40 images of another, noisier view the loss may rise by more than the margin; by 4,000 it does not."""
    kept = []
    for count in (40, 4000):
        before, labels = images(count, 0)
        noise = np.random.default_rng(1).normal(scale=0.4, size=before.shape).astype(np.float32)
        found = verdict(before, before + noise, labels)
        assert found["rise"] < MARGIN * found["loss"]
        kept.append(found["kept"])
    assert kept == [False, True]


def test_a_class_that_is_lost_refuses_what_is_good_on_average() -> None:
    before, labels = images(400, 0)
    rare = np.flatnonzero(labels == 3)[4:]
    before, labels = np.delete(before, rare, axis=0), np.delete(labels, rare)
    after = np.delete(images(400, 1)[0], rare, axis=0)
    assert verdict(before, after, labels)["kept"]
    lost = labels == 3
    after[lost] = after[lost][:, [0, 1, 3, 2]]
    found = verdict(before, after, labels)
    assert found["interval"][1] < MARGIN * found["loss"]
    assert not found["kept"]
    assert found["reason"] == "3 of 4 right answers for 'down' are wrong after it"


def test_a_class_of_one_image_hides_no_other_that_is_lost() -> None:
    before, labels = images(400, 0)
    rare = np.flatnonzero(labels >= 2)
    rare = rare[(labels[rare] == 2) & (rare > 2) | (labels[rare] == 3) & (rare > 20)]  # one "up", five "down"
    before, after = (np.delete(images(400, noise)[0], rare, axis=0) for noise in (0, 1))
    labels = np.delete(labels, rare)
    before[labels >= 2] = after[labels >= 2] = 9 * np.eye(4, dtype=np.float32)[labels[labels >= 2]]
    turned = np.flatnonzero(labels >= 2)[:-1]  # all but one "down"
    after[turned] = after[turned][:, [0, 1, 3, 2]]
    found = verdict(before, after, labels)
    assert found["reason"] == "4 of 5 right answers for 'down' are wrong after it"


@pytest.mark.parametrize("changed", [True, False])
def test_without_evidence_nothing_is_judged(changed: bool) -> None:
    before, labels = images(FEWEST_IMAGES - 1, 0)
    evidence = judge_changes(HEAD, before, {"hflip": before} if changed else {}, labels, Classes(CLASSES))
    assert evidence["changes"] == {}
    assert ("29 validation images are too few" if changed else "data/features has no changed") in evidence["reason"]


def test_changes_of_numbers_labels_and_grades_are_judged_by_their_loss() -> None:
    """A second noisy view is kept; the opposite answer is not, whatever the figure is called."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(300, 2)).astype(np.float32)
    views = [(truth + 0.4 * generator.normal(size=truth.shape)).astype(np.float32) for _ in range(2)]
    numbers, grades = Numbers(["a", "b"], ["", ""], [0.0] * 2, [1.0] * 2), Grades(["none", "mild", "bad"])
    cases: dict[str, tuple[Target, Values, float]] = {
        "mae": (numbers, truth, 1.0),
        "mean_ap": (Labels("ab"), (truth > 0).astype(np.float32), 4.0),
        "kappa": (grades, np.searchsorted([-0.5, 0.5], truth[:, 0]), 4.0),
    }
    for measure, (target, values, scale) in cases.items():
        inputs = [np.column_stack([each[:, 0] + 0.5, each[:, 0] - 0.5]) if target.tied else each for each in views]
        head = Head(scale * np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 0.01)
        evidence = judge_changes(head, inputs[0], {"hflip": inputs[1], "vflip": -inputs[0]}, values, target)["changes"]
        assert {name: each["kept"] for name, each in evidence.items()} == {"hflip": True, "vflip": False}
        assert evidence["hflip"][measure] == target.score(head.logits(inputs[0]), values)
        assert evidence["vflip"][f"changed_{measure}"] == target.score(head.logits(-inputs[0]), values)


def test_a_label_that_is_lost_refuses_what_is_good_on_average() -> None:
    generator = np.random.default_rng(0)
    values = np.zeros((400, 2), np.float32)
    values[:, 0], values[:4, 1] = np.arange(400) % 2, 1
    before, after = ((6 * (values - 0.5) + generator.normal(size=values.shape)).astype(np.float32) for _ in range(2))
    after[:4, 1] = -3
    head = Head(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 0.01)
    found = judge_changes(head, before, {"hflip": after}, values, Labels(["common", "rare"]))["changes"]["hflip"]
    assert found["interval"][1] < MARGIN * found["loss"]
    assert found["reason"] == "4 of 4 right answers for 'rare' are wrong after it"
