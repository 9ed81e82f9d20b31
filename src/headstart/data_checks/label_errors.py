"""Label errors: labels that a linear head, not trained on the image, contradicts with confidence.

A label counts as an error where the head's calibrated probability of it is at most a twentieth of its class's
frequency: the image is evidence against the label by 20 to 1, which Kass and Raftery (1995) call strong. Several labels
are judged one by one, a grade with those beyond it, a number by how many spreads of the residuals it is off
(``Target.find_errors``).

Confident learning (Northcutt et al. 2021, as in cleanlab 2.9) was measured beside a rule like this one, on Imagenette
with the bundled backbone, whose head has an accuracy of 75 %. Of 5,734 clean labels its filters listed 387 to 830, this
rule 48; of 50 random swaps they listed 0.54 to 0.94 at a precision of 0.05 to 0.10, this rule 0.59 at 0.38. Of several
labels (miml_scenes, 1,705 images, five labels of which 164 were turned over) cleanlab's filters listed 502 to 691, 117
to 133 of them turned; this rule 36, all of them in those lists, 26 of them turned, by the very same self-confidence.

In a large data set the heads are trained on a sample of the images. All are judged, each by a head that saw neither the
image nor another of its group.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import evenly
from headstart.probe.logistic import LinearSolver, RowSums
from headstart.targets.target import Target, Values

FOLDS = 3
"""With 5 and 10 folds as many swapped labels were detected, and it took longer."""
RELATIVE_L2 = 0.01
"""λ over the features' mean variance: here the cross-entropy of images held out was lowest, with swapped labels and
without, on the digits and on Imagenette. A tenth of it lists three times as many clean labels. For numbers it is chosen
by generalised cross-validation, from ``RELATIVE_L2S``, since that costs nothing."""
RELATIVE_L2S = np.geomspace(1e-5, 10, 13)
MAX_SAMPLE = 50_000
"""Images that the heads are trained on, at most."""
TOLERANCE = 1e-4
"""Of ``LinearSolver.path``. With 1e-9 it took 1.6 times as long, and of 65 labels listed one was another."""
MAX_WORK = 2 * 10**10
"""Images of the sample times features times outputs, at most: what takes minutes on two cores."""
BLOCK_VALUES = 2**24
"""Features or outputs that are in memory at once, beside those of the sample."""


def first_groups(target: Target, values: Values) -> NDArray[np.int64]:
    """Return the first group that each image is in by ``Target.strata``, int64 (n,): of classes, the class."""
    names, images, groups, _ = target.strata(values)
    first = np.full(len(values), len(names))
    first[images[::-1]] = groups[::-1]
    return first


def choose_sample(groups: NDArray[np.int64], width: int, outputs: int) -> NDArray[np.int64]:
    """Return the places (sample,) of the images to train heads on: all, or as large a part of each group."""
    by_group = np.argsort(groups, kind="stable")
    return np.sort(evenly(by_group, min(MAX_SAMPLE, MAX_WORK // (width * outputs))))


def out_of_fold_expectations(
    read_features: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    values: Values,
    target: Target,
    group_ids: NDArray[np.uint64],
    sample: NDArray[np.int64],
) -> Iterator[NDArray[np.float32]]:
    """Predict each image with a linear head that was trained on the other folds; images of one group share a fold.

    Args:
        read_features: returns the features at some places in ``values``, float32 (images, width).
        values: of n images.
        target: what they are values of.
        group_ids: uint64 (n,).
        sample: the places of the images that heads are trained on, int64 (sample,).

    Yields:
        ``Target.expected`` of some of the n images after another, float32 (images, outputs), calibrated, since a head
        with a large λ is underconfident. An image of a class, or with a label, that is in a single group of the sample
        cannot be predicted: the responses themselves are expected of it.
    """
    strata, folds, features = target.strata(values), _assign_folds(target, values, group_ids), read_features(sample)
    heads: list[tuple[int, NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]] = []
    for fold in range(FOLDS):
        rows = np.flatnonzero(folds[sample] != fold)
        if len(rows):
            trained_on = np.isin(strata.images, sample[rows])
            unknown = ~np.isin(strata.groups, strata.groups[trained_on])
            judged = np.ones(len(values), bool)
            judged[strata.images[unknown]] = False
            heads.append((fold, judged, *_fit(features[rows], values[sample[rows]], target, features)))

    def predict(
        places: NDArray[np.int64], features: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        outputs, predicted = np.zeros((len(places), target.outputs), np.float32), np.zeros(len(places), bool)
        for fold, judged, weight, bias in heads:
            held_out = (folds[places] == fold) & judged[places]
            outputs[held_out] = features[held_out] @ weight.T + bias
            predicted |= held_out
        return outputs, predicted

    some = evenly(np.arange(len(sample)), BLOCK_VALUES // target.outputs)
    outputs, predicted = predict(sample[some], features[some])
    fitted = target.fit(outputs[predicted], values[sample[some]][predicted]) if predicted.any() else {}
    size = BLOCK_VALUES // max(target.outputs, features.shape[1])
    del features
    for places in np.split(np.arange(len(values)), range(size, len(values), size)):
        outputs, predicted = predict(places, read_features(places))
        expected = target.responses(values[places], outputs)
        if predicted.any():
            expected[predicted] = target.expected(outputs[predicted], fitted)
        yield expected


def _fit(
    features: NDArray[np.float32], values: Values, target: Target, sample: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weight and the bias of a head, at a λ that suits the features of the sample."""
    variance = float(sample.var(axis=0).mean()) or 1.0  # constant features say nothing at any λ
    solver, best = LinearSolver(RowSums(features, values, target), target), np.inf
    l2s = [RELATIVE_L2 * variance] if target.link != "identity" else (RELATIVE_L2S * variance).tolist()
    for _, *head in solver.path(l2s, tolerance=TOLERANCE):
        guess = solver.gcv or 0.0
        if guess <= best:
            best, (weight, bias) = guess, head
    return weight.astype(np.float32), bias.astype(np.float32)


def _assign_folds(target: Target, values: Values, group_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Assign groups to folds in turn, class after class; within a class they are ordered by their id, a hash."""
    _, first, group = np.unique(group_ids, return_index=True, return_inverse=True)
    folds = np.empty(len(first), np.int64)
    folds[np.argsort(first_groups(target, values)[first], kind="stable")] = np.arange(len(first)) % FOLDS
    return folds[group]
