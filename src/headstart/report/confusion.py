"""What the fine-tuned model confuses: the confusion matrix, pairs of classes, the mistakes to look at."""

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.paths import PREDICTIONS
from headstart.data.dataset import evenly
from headstart.report.inputs import PredictionRow, damaged_file_error
from headstart.targets.target import Target

MAX_PAIRS = 60
MAX_MISTAKES = 24
MAX_IMAGES_PER_PAIR = 8
MAX_IMAGES_IN_PAIRS = 216
"""How many are shown: pairs, the worst mistakes, images of one pair, images of all pairs together."""
MAX_POINTS = 600
"""Of a chart, which takes some 60 bytes for each."""
CORRECT_COLOUR, MISTAKE_COLOUR = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


class ShownMistake(NamedTuple):
    """A mistake of the fine-tuned model; ``id`` as in ``PreparedDataset.ids``, the others as in ``Mistake``."""

    id: int
    source: str
    badness: float
    label: str
    predicted: str
    note: str


class ConfusedPair(NamedTuple):
    """A class predicted as another: how often, as a fraction of its test images, and the worst mistakes."""

    label: str
    predicted: str
    images: int
    fraction: float
    shown: list[ShownMistake]


@dataclass(frozen=True)
class Confusion:
    """The predictions, counted by what is true (rows) and what was said, and the mistakes to show.

    Attributes:
        classes: names, and what the target has beside them; none of numbers.
        counts: int64 (classes, classes).
        points: of numbers, true and predicted ones of at most ``MAX_POINTS`` images, float64 (points, 2) of each.
        wrong: how many images have a mistake.
        confident: the ``MAX_MISTAKES`` worst, the worst first.
        pairs: the ``MAX_PAIRS`` most frequent; the first have images to show, at most ``MAX_IMAGES_IN_PAIRS``.
    """

    classes: list[str]
    counts: NDArray[np.int64]
    points: list[NDArray[np.float64]]
    wrong: int
    confident: list[ShownMistake]
    pairs: list[ConfusedPair]


Judged = tuple[list[tuple[str, str]], ShownMistake | None]
"""The pairs of a prediction, and its mistake."""


class _Counts:
    """Counts pairs, and collects numbers."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.classes = [*target.names, *target.beside] if target.discrete else []
        self.pairs: NDArray[np.int64] = np.zeros((len(self.classes), len(self.classes)), np.int64)
        self.support = np.zeros(len(self.classes), np.int64)
        self.surest = dict[tuple[int, int], float]()
        self.numbers = [array("d") for _ in target.names]
        self._place = {name: i for i, name in enumerate(self.classes)}

    def judge(self, prediction: PredictionRow) -> Judged:
        """Return a prediction's pairs and mistake; raises UserError if it is not of this target."""
        try:
            mistake = self.target.mistake(prediction.label, prediction.said)
            pairs = self.target.pairs(prediction.label, prediction.said)
        except ValueError as error:
            raise damaged_file_error(PREDICTIONS, f"image {prediction.id:016x}: {error}") from error
        return pairs, mistake and ShownMistake(prediction.id, prediction.source, *mistake)

    def add(self, pairs: list[tuple[str, str]], mistake: ShownMistake | None) -> None:
        """Count what was judged; raises UserError at a name that is not the target's."""
        if not self.target.discrete:
            for series, (truth, said) in zip(self.numbers, pairs, strict=True):
                series.extend((float(truth), float(said)) if truth else ())
            return
        if unknown := {name for pair in pairs for name in pair} - set(self._place):
            noun = self.target.words.noun
            raise damaged_file_error(PREDICTIONS, f"{min(unknown)!r} is no {noun} of data/prepared")
        for i in {self._place[label] for label, _ in pairs}:
            self.support[i] += 1
        for label, predicted in pairs:
            pair = self._place[label], self._place[predicted]
            self.pairs[pair] += 1
            if mistake and label != predicted:
                self.surest[pair] = max(self.surest.get(pair, 0.0), mistake.badness)

    def ranked(self) -> list[tuple[int, int]]:
        """Return the wrong pairs to show, the most frequent first, then those with the worst mistakes."""
        names, surest = self.classes, self.surest
        order = sorted(surest, key=lambda pair: (-self.pairs[pair], -surest[pair], names[pair[0]], names[pair[1]]))
        return order[:MAX_PAIRS]


def count_predictions(target: Target, read: Callable[[], Iterable[PredictionRow]]) -> Confusion:
    """Count the predictions and choose mistakes to show; raises UserError at a name that is not the target's.

    ``read`` is called twice, since only the counts say which pairs are shown; no more than what is shown is in memory,
    and 16 bytes for each number of an image.
    """
    counts, wrong = _Counts(target), 0

    def mistakes() -> Iterator[ShownMistake]:
        nonlocal wrong
        for pairs, mistake in map(counts.judge, read()):
            counts.add(pairs, mistake)
            if mistake:
                wrong += 1
                yield mistake

    confident = heapq.nsmallest(MAX_MISTAKES, mistakes(), key=_least_bad_last)
    ranked, classes = counts.ranked(), counts.classes
    shown: dict[tuple[str, str], list[ShownMistake]] = {(classes[i], classes[j]): [] for i, j in ranked}
    for pairs, mistake in map(counts.judge, read() if shown else ()):
        if mistake is None:
            continue
        for images in (shown[pair] for pair in pairs if pair in shown):
            images.append(mistake)
            if len(images) > 2 * MAX_IMAGES_PER_PAIR:
                images[:] = heapq.nsmallest(MAX_IMAGES_PER_PAIR, images, key=_least_bad_last)
    found, left = list[ConfusedPair](), MAX_IMAGES_IN_PAIRS
    for i, j in ranked:
        images = sorted(shown[classes[i], classes[j]], key=_least_bad_last)[: min(MAX_IMAGES_PER_PAIR, left)]
        left -= len(images)
        often = int(counts.pairs[i, j])
        found.append(ConfusedPair(classes[i], classes[j], often, often / int(counts.support[i]), images))
    points = [evenly(np.array(each).reshape(-1, 2), MAX_POINTS) for each in counts.numbers if each]
    return Confusion(classes, counts.pairs, points, wrong, confident, found)


def _least_bad_last(mistake: ShownMistake) -> tuple[float, int]:
    return -mistake.badness, mistake.id


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
