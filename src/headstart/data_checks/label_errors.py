"""Label errors: labels that a linear head, not trained on the image, contradicts with confidence.

A label counts as an error where the head's calibrated probability of it is at most a twentieth of its class's
frequency: the image is evidence against the label by 20 to 1, which Kass and Raftery (1995) call strong.

Confident learning (Northcutt et al. 2021, as in cleanlab 2.9) was measured beside a rule like this one, on Imagenette
with the bundled backbone, whose head has an accuracy of 75 %. Of 5,734 clean labels its filters listed 387 to 830, this
rule 48; of 50 random swaps they listed 0.54 to 0.94 at a precision of 0.05 to 0.10, this rule 0.59 at 0.38.

In a large data set the heads are trained on a sample of the images. All are judged, each by a head that saw neither the
image nor another of its group.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from headstart.data.dataset import evenly
from headstart.probe.logistic import logistic_path
from headstart.targets.likelihood import fit_temperature

MAX_RATIO = 0.05
"""The label's probability over its class's frequency, at or below which the label counts as an error."""
FOLDS = 3
"""With 5 and 10 folds as many swapped labels were detected, and it took longer."""
RELATIVE_L2 = 0.01
"""λ over the features' mean variance: here the cross-entropy of images held out was lowest, with swapped labels and
without, on the digits and on Imagenette. A tenth of it lists three times as many clean labels."""
MAX_SAMPLE = 50_000
"""Images that the heads are trained on, at most."""
TOLERANCE = 1e-4
"""Of ``logistic_path``. With 1e-9 it took 1.6 times as long, and of 65 labels listed one was another."""
MAX_WORK = 2 * 10**10
"""Images of the sample times features times classes, at most: what takes minutes on two cores."""
BLOCK_VALUES = 2**24
"""Features or probabilities that are in memory at once, beside those of the sample."""


class LabelError(NamedTuple):
    """A likely label error: its place in the arrays, the class suggested instead, and the probabilities of both."""

    place: int
    suggested: int
    label_probability: float
    suggested_probability: float


def find_label_errors(labels: NDArray[np.int64], probabilities: Iterable[NDArray[np.floating]]) -> list[LabelError]:
    """Find likely label errors, the worst first.

    The probabilities, float (n, classes) in blocks of any number of images, are calibrated and of a model that was not
    trained on these images.
    """
    frequencies, begin = np.bincount(labels) / max(1, len(labels)), 0
    errors: list[LabelError] = []
    for block in probabilities:
        of_block, places = labels[begin : begin + len(block)], np.arange(len(block))
        of_labels, suggested = block[places, of_block], block.argmax(1)
        places = places[(of_labels / frequencies[of_block] <= MAX_RATIO) & (suggested != of_block)]
        columns = places + begin, suggested[places], of_labels[places], block[places, suggested[places]]
        errors += map(LabelError, *(column.tolist() for column in columns))
        begin += len(block)
    return sorted(errors, key=lambda error: error.label_probability / frequencies[labels[error.place]])


def choose_sample(labels: NDArray[np.int64], width: int, classes: int) -> NDArray[np.int64]:
    """Return the places (sample,) of the images to train heads on: all, or as large a part of each class."""
    by_class = np.argsort(labels, kind="stable")
    return np.sort(evenly(by_class, min(MAX_SAMPLE, MAX_WORK // (width * classes))))


def out_of_fold_probabilities(
    read_features: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    labels: NDArray[np.int64],
    group_ids: NDArray[np.uint64],
    sample: NDArray[np.int64],
    classes: int,
) -> Iterator[NDArray[np.float32]]:
    """Predict each image with a linear head that was trained on the other folds; images of one group share a fold.

    Args:
        read_features: returns the features at some places in ``labels``, float32 (images, width).
        labels: int64 (n,).
        group_ids: uint64 (n,).
        sample: the places of the images that heads are trained on, int64 (sample,).
        classes: number of them.

    Yields:
        float32 (images, classes), for some of the n images after another, calibrated by one temperature, since a head
        with a large λ is underconfident. A class that is in a single group of the sample cannot be predicted: its
        labels get the probability 1.
    """
    folds, features = _assign_folds(labels, group_ids), read_features(sample)
    l2 = RELATIVE_L2 * float(features.var(axis=0).mean()) or RELATIVE_L2  # constant features say nothing at any λ
    heads: list[tuple[int, NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]] = []
    for fold in range(FOLDS):
        rows = np.flatnonzero(folds[sample] != fold)
        if len(rows):
            known = np.isin(np.arange(classes), labels[sample[rows]])
            [(_, weight, bias)] = logistic_path(
                features[rows], labels[sample[rows]], classes, [l2], tolerance=TOLERANCE
            )
            heads.append((fold, known, weight.astype(np.float32), bias.astype(np.float32)))

    def predict(
        places: NDArray[np.int64], features: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        logits, predicted = np.zeros((len(places), classes), np.float32), np.zeros(len(places), bool)
        for fold, known, weight, bias in heads:
            held_out = (folds[places] == fold) & known[labels[places]]
            logits[held_out] = features[held_out] @ weight.T + bias
            predicted |= held_out
        return logits, predicted

    some = evenly(np.arange(len(sample)), BLOCK_VALUES // classes)
    logits, predicted = predict(sample[some], features[some])
    temperature = fit_temperature(logits[predicted], labels[sample[some]][predicted]) if predicted.any() else 1.0
    size = BLOCK_VALUES // max(classes, features.shape[1])
    del features
    for places in np.split(np.arange(len(labels)), range(size, len(labels), size)):
        logits, predicted = predict(places, read_features(places))
        probabilities = np.eye(classes, dtype=np.float32)[labels[places]]
        probabilities[predicted] = softmax(logits[predicted] / temperature, axis=1)
        yield probabilities


def _assign_folds(labels: NDArray[np.int64], group_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Assign groups to folds in turn, class after class; within a class they are ordered by their id, a hash."""
    _, first, group = np.unique(group_ids, return_index=True, return_inverse=True)
    folds = np.empty(len(first), np.int64)
    folds[np.argsort(labels[first], kind="stable")] = np.arange(len(first)) % FOLDS
    return folds[group]
