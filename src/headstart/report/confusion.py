"""Which classes the fine-tuned model confuses: the confusion matrix, pairs of classes, the mistakes to look at."""

import heapq
from collections.abc import Callable, Iterable, Iterator
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


class ConfusedPair(NamedTuple):
    """A class predicted as another: how often, as a fraction of its test images, and the most confident mistakes."""

    label: str
    predicted: str
    images: int
    fraction: float
    shown: list[PredictionRow]


@dataclass(frozen=True)
class Confusion:
    """The predictions, counted by label (rows) and prediction, and the mistakes to show.

    Attributes:
        classes: names.
        counts: int64 (classes, classes).
        wrong: how many mistakes there are.
        confident: the ``MAX_MISTAKES`` most confident, the most confident first.
        pairs: the ``MAX_PAIRS`` most frequent; the first have images to show, at most ``MAX_IMAGES_IN_PAIRS``.
    """

    classes: list[str]
    counts: NDArray[np.int64]
    wrong: int
    confident: list[PredictionRow]
    pairs: list[ConfusedPair]


def count_predictions(classes: list[str], read: Callable[[], Iterable[PredictionRow]]) -> Confusion:
    """Count the predictions and choose mistakes to show; raises UserError at a class that is not among ``classes``.

    ``read`` is called twice, since only the counts say which pairs are shown; no more than what is shown is in memory.
    """
    place = {name: i for i, name in enumerate(classes)}
    counts: NDArray[np.int64] = np.zeros((len(classes), len(classes)), np.int64)
    surest: dict[tuple[int, int], float] = {}

    def mistakes() -> Iterator[PredictionRow]:
        for prediction in read():
            if unknown := {prediction.label, prediction.predicted} - set(place):
                raise damaged_file_error(PREDICTIONS, f"{min(unknown)!r} is no class of data/prepared")
            pair = place[prediction.label], place[prediction.predicted]
            counts[pair] += 1
            if pair[0] != pair[1]:
                surest[pair] = max(surest.get(pair, 0.0), prediction.probability)
                yield prediction

    confident = heapq.nsmallest(MAX_MISTAKES, mistakes(), key=_least_confident_last)
    support = counts.sum(axis=1).tolist()
    ranked = sorted(surest, key=lambda pair: (-counts[pair], -surest[pair], classes[pair[0]], classes[pair[1]]))
    shown: dict[tuple[str, str], list[PredictionRow]] = {(classes[i], classes[j]): [] for i, j in ranked[:MAX_PAIRS]}
    for prediction in read():
        if (images := shown.get((prediction.label, prediction.predicted))) is not None:
            images.append(prediction)
            if len(images) > 2 * MAX_IMAGES_PER_PAIR:
                images[:] = heapq.nsmallest(MAX_IMAGES_PER_PAIR, images, key=_least_confident_last)
    pairs, left = list[ConfusedPair](), MAX_IMAGES_IN_PAIRS
    for i, j in ranked[:MAX_PAIRS]:
        images = sorted(shown[classes[i], classes[j]], key=_least_confident_last)[: min(MAX_IMAGES_PER_PAIR, left)]
        left -= len(images)
        pairs.append(ConfusedPair(classes[i], classes[j], int(counts[i, j]), int(counts[i, j]) / support[i], images))
    wrong = int(counts.sum() - counts.trace())
    return Confusion(classes, counts, wrong, confident, pairs)


def _least_confident_last(mistake: PredictionRow) -> tuple[float, int]:
    return -mistake.probability, mistake.id


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
