"""Which classes the fine-tuned model confuses: the confusion matrix, pairs of classes, the mistakes to look at."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.paths import PREDICTIONS
from headstart.report.inputs import PredictionRow, damaged_file_error

MAX_PAIRS = 60
MAX_MISTAKES = 24
MAX_IMAGES_PER_PAIR = 8
MAX_IMAGES_IN_PAIRS = 216
"""How many are shown: pairs, the most confident mistakes, images of one pair, images of all pairs together."""
CORRECT_COLOUR, MISTAKE_COLOUR = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@dataclass(frozen=True)
class Confusion:
    """The predictions, counted by label (rows) and prediction, and the mistakes, the most confident first."""

    classes: list[str]
    counts: NDArray[np.int64]
    mistakes: list[PredictionRow]


class ConfusedPair(NamedTuple):
    """A class predicted as another: how often, as a fraction of its test images, and the most confident mistakes."""

    label: str
    predicted: str
    images: int
    fraction: float
    shown: list[PredictionRow]


def count_predictions(classes: list[str], predictions: Iterable[PredictionRow]) -> Confusion:
    """Count the predictions and collect the wrong ones; raises UserError at a class that is not among ``classes``."""
    place = {name: i for i, name in enumerate(classes)}
    counts, mistakes = np.zeros((len(classes), len(classes)), np.int64), []
    for prediction in predictions:
        if unknown := {prediction.label, prediction.predicted} - set(place):
            raise damaged_file_error(PREDICTIONS, f"{min(unknown)!r} is no class of data/prepared")
        counts[place[prediction.label], place[prediction.predicted]] += 1
        if prediction.label != prediction.predicted:
            mistakes.append(prediction)
    return Confusion(classes, counts, sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.id)))


def confused_pairs(confusion: Confusion) -> list[ConfusedPair]:
    """Return the most frequent pairs; the first ones have images to show, until ``MAX_IMAGES_IN_PAIRS`` are reached."""
    by_pair: dict[tuple[str, str], list[PredictionRow]] = defaultdict(list)
    for mistake in confusion.mistakes:
        by_pair[mistake.label, mistake.predicted].append(mistake)
    support = dict(zip(confusion.classes, confusion.counts.sum(axis=1).tolist(), strict=True))
    ranked = sorted(by_pair.items(), key=lambda item: (-len(item[1]), -item[1][0].probability, item[0]))
    pairs, left = [], MAX_IMAGES_IN_PAIRS
    for (label, predicted), mistakes in ranked[:MAX_PAIRS]:
        shown = mistakes[: min(MAX_IMAGES_PER_PAIR, left)]
        left -= len(shown)
        pairs.append(ConfusedPair(label, predicted, len(mistakes), len(mistakes) / support[label], shown))
    return pairs


def _row_fractions(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide each row by its sum, float64 (classes, classes); a class without images has a row of zeros."""
    return np.asarray(counts / counts.sum(axis=1, keepdims=True).clip(1))


def most_frequent_mistakes(confusion: Confusion) -> dict[str, tuple[str, int]]:
    """Return, for each class with mistakes, the other class that it is most often predicted as, and how often."""
    wrong = confusion.counts - np.diag(np.diag(confusion.counts))
    return {
        name: (confusion.classes[int(row.argmax())], int(row.max()))
        for name, row in zip(confusion.classes, wrong, strict=True)
        if row.any()
    }


def cluster_classes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the matrix with its classes reordered, so that classes that are confused are next to each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # noqa: PLC0415  (slow, and only many classes need it)
    from scipy.spatial.distance import squareform  # noqa: PLC0415

    fractions = _row_fractions(counts)
    distances = 1 - np.minimum(fractions + fractions.T, 1)
    np.fill_diagonal(distances, 0)
    order = leaves_list(linkage(squareform(distances, checks=False), "average"))
    return np.asarray(counts[np.ix_(order, order)], np.int64)


def heat_map(counts: NDArray[np.int64]) -> Image.Image:
    """Draw a matrix with one pixel for each cell: blue where correct, orange where wrong, transparent where empty.

    A pixel's opacity is the square root of its fraction of the row, so that a fraction of 1 % is visible.
    """
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = MISTAKE_COLOUR
    pixels[np.diag_indices(len(counts))] = (*CORRECT_COLOUR, 0)
    pixels[..., 3] = np.rint(255 * np.sqrt(_row_fractions(counts)))
    return Image.fromarray(pixels)
