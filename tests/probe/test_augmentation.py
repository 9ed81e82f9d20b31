"""Changes are judged by what they do to the probe's answers, image by image."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.models.head import Head
from headstart.probe.augmentation import FEWEST_IMAGES, MARGIN, judge_changes
from headstart.targets.classes import Classes

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
