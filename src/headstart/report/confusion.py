"""What the fine-tuned model takes for what: the confusion matrix, pairs of classes, the mistakes to look at."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.paths import PREDICTIONS
from headstart.report.inputs import PredictionRow, unreadable

MOST_PAIRS = 60
MOST_CONFIDENT = 24
OF_A_PAIR = 8
IN_PAIRS = 216
"""How many mistakes are shown: of all, of one pair, of all pairs together."""
RIGHT, WRONG = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@dataclass(frozen=True)
class ImageOutcome:
    """What the predictions come to.

    Attributes:
        classes: their names.
        counts: int64 (classes, classes), images by class and prediction.
        mistakes: the wrong ones, the most confident first.
    """

    classes: list[str]
    counts: NDArray[np.int64]
    mistakes: list[PredictionRow]


class ConfusedPair(NamedTuple):
    """A class taken for another: how often, as a share of its test images, and some of them, most confident first."""

    label: str
    predicted: str
    pictures: int
    share: float
    shown: list[PredictionRow]


def count_up(classes: list[str], predictions: Iterable[PredictionRow]) -> ImageOutcome:
    """Count the predictions and keep the wrong ones; raises UserError at a class that is not among them."""
    place = {name: i for i, name in enumerate(classes)}
    counts, mistakes = np.zeros((len(classes), len(classes)), np.int64), []
    for prediction in predictions:
        if unknown := {prediction.label, prediction.predicted} - set(place):
            raise unreadable(PREDICTIONS, f"{min(unknown)!r} is no class of data/prepared")
        counts[place[prediction.label], place[prediction.predicted]] += 1
        if prediction.label != prediction.predicted:
            mistakes.append(prediction)
    return ImageOutcome(classes, counts, sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.id)))


def confused_pairs(outcome: ImageOutcome) -> list[ConfusedPair]:
    """List who is taken for whom, most often first; the first pairs have mistakes to show, up to all that are shown."""
    of_pair: dict[tuple[str, str], list[PredictionRow]] = defaultdict(list)
    for mistake in outcome.mistakes:
        of_pair[mistake.label, mistake.predicted].append(mistake)
    support = dict(zip(outcome.classes, outcome.counts.sum(axis=1).tolist(), strict=True))
    ranked = sorted(of_pair.items(), key=lambda item: (-len(item[1]), -item[1][0].probability, item[0]))
    pairs, left = [], IN_PAIRS
    for (label, predicted), mistakes in ranked[:MOST_PAIRS]:
        shown = mistakes[: min(OF_A_PAIR, left)]
        left -= len(shown)
        pairs.append(ConfusedPair(label, predicted, len(mistakes), len(mistakes) / support[label], shown))
    return pairs


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide each row by its sum, float64 (classes, classes); a class without images has a row of zeros."""
    return np.asarray(counts / counts.sum(axis=1, keepdims=True).clip(1))


def most_often_taken_for(outcome: ImageOutcome) -> dict[str, tuple[str, int]]:
    """Return for each class that is ever mistaken the other that it is most often taken for, and how often."""
    wrong = outcome.counts - np.diag(np.diag(outcome.counts))
    return {
        name: (outcome.classes[int(row.argmax())], int(row.max()))
        for name, row in zip(outcome.classes, wrong, strict=True)
        if row.any()
    }


def in_clusters(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the matrix with its classes in an order in which those that are confused stand side by side."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # noqa: PLC0415  (slow, and only many classes need it)
    from scipy.spatial.distance import squareform  # noqa: PLC0415

    share = shares(counts)
    apart = 1 - np.minimum(share + share.T, 1)
    np.fill_diagonal(apart, 0)
    order = leaves_list(linkage(squareform(apart, checks=False), "average"))
    return np.asarray(counts[np.ix_(order, order)], np.int64)


def heat_map(counts: NDArray[np.int64]) -> Image.Image:
    """Paint a matrix with a pixel for each of its cells: blue where it is right, orange where wrong, clear where empty.

    How opaque a pixel is goes with the root of its share of the row, so that a share of 1 % is seen.
    """
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = WRONG
    pixels[np.diag_indices(len(counts))] = (*RIGHT, 0)
    pixels[..., 3] = np.rint(255 * np.sqrt(shares(counts)))
    return Image.fromarray(pixels)
