"""Figures of a classifier on labelled images, all of them functions of sums over the images but the AUROC.

So the figures of a redrawn test set are those of the same sums with each image counted as often as it was drawn
(``evaluation.bootstrap``), and there is one way to compute a figure. Of many images a block is in memory at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import log_softmax, softmax

from headstart.core.blocks import Matrix, row_blocks
from headstart.targets.reliability import ECE_BINS, confidence_bins
from headstart.targets.target import Figures, rounded


def contributions(logits: NDArray[np.floating], labels: NDArray[np.int64], top_k: int) -> csr_array:
    """Return what each image adds to the sums that ``figures`` reads: float64 (n, 4 + 3 classes + bins).

    The columns are: correct, label within the top k, −log p of the label, squared error; for each class the images
    labelled, predicted, and both; for each bin of confidence, correct less confidence. ``logits``, float (n, classes),
    may be log-probabilities; ``labels`` are int64 (n,).
    """
    n, classes = logits.shape
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities, predicted = np.exp(log_probabilities), log_probabilities.argmax(1)
    confidence, correct = probabilities.max(1), (predicted == labels).astype(np.float64)
    label_entries = np.arange(n), labels
    nll = -log_probabilities[label_entries]
    ahead = (log_probabilities == -nll[:, None]) & (np.arange(classes) < labels[:, None])  # as argmax orders equal ones
    within = ((log_probabilities > -nll[:, None]) | ahead).sum(1) < top_k
    brier = (probabilities**2).sum(1) - 2 * probabilities[label_entries] + 1
    columns = [np.full(n, i) for i in range(4)]
    blocks = [labels, predicted, labels, confidence_bins(confidence)]
    columns += [4 + i * classes + block for i, block in enumerate(blocks)]
    values = [correct, within.astype(np.float64), nll, brier]
    values += [np.ones(n), np.ones(n), correct, correct - confidence]
    entries = np.tile(np.arange(n), len(columns)), np.concatenate(columns)
    return csr_array((np.concatenate(values), entries), shape=(n, 4 + 3 * classes + ECE_BINS))


def figures(sums: NDArray[np.float64], top_k: int) -> Figures:
    """Compute figures from sums of contributions, float64 (test sets, 4 + 3 classes + bins).

    Returns:
        By name, float64 (test sets,): ``accuracy``; ``balanced_accuracy``, the mean recall, and ``macro_f1``, the mean
        F1, over the classes that occur; ``top_<k>_accuracy``, unless there are no more than k classes; ``nll``, the
        mean negative log-likelihood in nats; ``brier``, the mean squared distance of the probabilities from the
        label's (0 to 2; Brier 1950); ``ece``, the mean absolute difference of confidence and accuracy in ``ECE_BINS``
        equally wide bins, weighted by their images (Naeini et al. 2015).
    """
    correct, within, nll, brier = sums[:, :4].T
    support, predicted, true_positives = _class_sums(sums)
    total, occurs = support.sum(1), support > 0
    recall = np.divide(true_positives, support, out=np.zeros_like(support), where=occurs)
    f1 = np.where(occurs, 2 * true_positives / np.maximum(support + predicted, 1), 0)
    by_name = {
        "accuracy": correct / total,
        "balanced_accuracy": recall.sum(1) / occurs.sum(1),
        "macro_f1": f1.sum(1) / occurs.sum(1),
        f"top_{top_k}_accuracy": within / total,
        "nll": nll / total,
        "brier": brier / total,
        "ece": np.abs(sums[:, -ECE_BINS:]).sum(1) / total,
    }
    if top_k >= support.shape[1]:
        del by_name[f"top_{top_k}_accuracy"]
    return by_name


def sum_by_unit(
    logits: Matrix, labels: NDArray[np.int64], top_k: int, units: NDArray[np.int64], count: int
) -> csr_array:
    """Return the ``contributions`` of images summed by unit: float64 (count, …).

    ``units``, int64 (n,), are below ``count``.
    """
    sums = csr_array((count, 4 + 3 * logits.shape[1] + ECE_BINS))
    for rows in row_blocks(logits.shape):
        each = contributions(logits[rows], labels[rows], top_k)
        member = units[rows], np.arange(each.shape[0])
        sums = sums + csr_array((np.ones(each.shape[0]), member), shape=(count, each.shape[0])) @ each
    return sums


def mean_auroc(logits: Matrix, labels: NDArray[np.int64]) -> float | None:
    """Return the area under the ROC curve of each class against the rest, averaged over the classes that occur.

    None where only one class does. The area is the fraction of pairs, of an image of the class and another, in which
    the first has the higher probability of it; equal ones count half. It is exact: the probabilities that the images of
    a class have of it are sorted, 8 bytes for each image, and those of the others are looked up there.
    """
    counts = np.bincount(labels, minlength=logits.shape[1])
    occurring = np.flatnonzero(counts).tolist()
    if len(occurring) < 2:
        return None

    def probabilities() -> Iterator[tuple[slice, NDArray[np.float64]]]:
        for rows in row_blocks(logits.shape):
            yield rows, np.ascontiguousarray(softmax(logits[rows].astype(np.float64), axis=1).T)

    own = np.concatenate([of_class[labels[rows], np.arange(of_class.shape[1])] for rows, of_class in probabilities()])
    members = np.split(own[np.lexsort((own, labels))], counts.cumsum()[:-1])
    twice_ordered = dict.fromkeys(occurring, 0)
    for _, of_class in probabilities():
        for i in occurring:
            not_above = (members[i].searchsorted(of_class[i], side).sum() for side in ("left", "right"))
            twice_ordered[i] += 2 * len(members[i]) * of_class.shape[1] - sum(map(int, not_above))
    # Of the pairs within the class, each in both orders, half are in the right one.
    pairs = {i: int(counts[i]) * (len(labels) - int(counts[i])) for i in occurring}
    return float(np.mean([(twice_ordered[i] - int(counts[i]) ** 2) / (2 * pairs[i]) for i in occurring]))


def per_class(sums: NDArray[np.float64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Compute the figures of each class from ``contributions`` summed.

    Returns:
        One dict for each class with ``class``, ``precision``, ``recall``, ``f1`` and ``support``, plain JSON values. A
        class that does not occur has no recall and no F1: they are None, as is the precision of a class that is never
        predicted.
    """
    return [
        {
            "class": name,
            "precision": rounded(hits / predicted) if predicted else None,
            "recall": rounded(hits / support) if support else None,
            "f1": rounded(2 * hits / (support + predicted)) if support else None,
            "support": int(support),
        }
        for name, support, predicted, hits in zip(classes, *(each[0] for each in _class_sums(sums[None])), strict=True)
    ]


def _class_sums(sums: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return how many images are labelled with each class, predicted as it, and both: (test sets, classes) each."""
    classes = (sums.shape[1] - 4 - ECE_BINS) // 3
    return [sums[:, 4 + i * classes :][:, :classes] for i in range(3)]
