import numpy as np
import pytest

from headstart.core.errors import UserError
from headstart.report.confusion import (
    MAX_IMAGES_IN_PAIRS,
    MAX_IMAGES_PER_PAIR,
    MAX_MISTAKES,
    Confusion,
    cluster_classes,
    count_predictions,
    heat_map,
    most_frequent_mistakes,
)
from headstart.report.inputs import PredictionRow
from headstart.targets.classes import Classes

CLASSES = ["cat", "dog", "owl"]


def outcome(*said: tuple[str, str, float]) -> Confusion:
    """Of label, prediction and probability of each image."""
    rows = [PredictionRow(i, f"{i}.png", label, tuple(answer)) for i, (label, *answer) in enumerate(said)]
    return count_predictions(Classes(CLASSES), lambda: rows)


def test_predictions_are_counted_and_the_most_confident_mistake_is_first() -> None:
    found = outcome(("cat", "cat", 0.9), ("cat", "dog", 0.5), ("dog", "cat", 0.8), ("cat", "dog", 0.7))
    assert found.counts.tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert [mistake.id for mistake in found.confident] == [2, 3, 1]
    assert found.wrong == 3
    assert most_frequent_mistakes(found) == {"cat": ("dog", 2), "dog": ("cat", 1)}
    with pytest.raises(UserError, match=r"predictions\.csv.*'yak' is no class"):
        outcome(("cat", "yak", 0.5))


def test_pairs_are_ordered_by_how_often_then_by_how_sure() -> None:
    pairs = outcome(
        ("owl", "cat", 0.9), ("cat", "dog", 0.5), ("dog", "cat", 0.99), ("cat", "dog", 0.7), ("cat", "cat", 1)
    ).pairs
    assert [(pair.label, pair.predicted, pair.images) for pair in pairs] == [
        ("cat", "dog", 2),
        ("dog", "cat", 1),
        ("owl", "cat", 1),
    ]
    assert [mistake.id for mistake in pairs[0].shown] == [3, 1]
    assert pairs[0].fraction == pytest.approx(2 / 3)


def test_only_so_many_are_shown() -> None:
    classes = [f"{i}" for i in range(100)]
    mistakes = [PredictionRow(50 * i + j, "", f"{i}", (f"{(i + 1) % 100}", 0.5)) for i in range(100) for j in range(10)]
    pairs = count_predictions(Classes(classes), lambda: mistakes).pairs
    assert {len(pair.shown) for pair in pairs} == {0, MAX_IMAGES_PER_PAIR}
    assert sum(len(pair.shown) for pair in pairs) == MAX_IMAGES_IN_PAIRS


def test_classes_that_are_confused_come_to_stand_side_by_side() -> None:
    counts = 8 * np.eye(6, dtype=np.int64)
    for i in range(3):  # 0 with 3, 1 with 4, 2 with 5
        counts[i, i + 3] = counts[i + 3, i] = 2
    ordered = cluster_classes(counts)
    assert sorted(np.diag(ordered)) == sorted(np.diag(counts))
    beside = np.diag(ordered, 1)
    assert sorted(beside) == [0, 0, 2, 2, 2]


def test_the_heat_map_tells_right_from_wrong_and_is_clear_where_nothing_is() -> None:
    image = np.asarray(heat_map(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])))
    assert image.shape == (3, 3, 4)
    right, wrong = image[2, 2], image[0, 1]
    assert right[3] == 255
    assert right[2] > right[0]
    assert wrong[0] > wrong[2]
    assert wrong[3] == round(255 * 0.25**0.5)
    assert not image[1, :, 3].any()


def test_the_most_confident_of_many_are_shown() -> None:
    probabilities = np.random.default_rng(0).permutation(500) / 500
    found = outcome(*(("cat", "dog", p) for p in probabilities), *(("cat", "cat", 1.0) for _ in range(50)))
    assert [each.badness for each in found.pairs[0].shown] == sorted(probabilities)[: -MAX_IMAGES_PER_PAIR - 1 : -1]
    assert [each.badness for each in found.confident] == sorted(probabilities)[: -MAX_MISTAKES - 1 : -1]
    assert (found.wrong, found.pairs[0].images) == (500, 500)
