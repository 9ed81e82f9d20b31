"""Figures of classifiers over redrawn test sets: a bootstrap stratified by class, and by group where there are groups.

Every figure here is a function of sums over the images, so a replicate is the same sums with each image counted as
often as it was drawn: one sparse matrix product for many replicates. Drawing groups and not images keeps images of
one patient, place or burst together, as they would come together again (Davison & Hinkley 1997, sections 3.2 and 3.8).
All models are judged on the same draws, so that their differences are paired.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import log_softmax
from scipy.stats import binomtest

REPLICATES = 1000
LEVEL = 0.95
ECE_BINS = 15
DRAWN_AT_ONCE = 50
"""Replicates whose draws are in memory together: 4 bytes an image each."""

Replicates = dict[str, NDArray[np.float64]]
"""A model's figures by name, float64 (replicates,) each."""


def confidence_bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each probability's bin of ``ECE_BINS`` equally wide ones; each holds its lower end, the last both."""
    return np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def contributions(logits: NDArray[np.float32], labels: NDArray[np.int64], top_k: int) -> csr_array:
    """Return what each image adds to the sums that ``figures`` reads: float64 (n, 4 + 3 classes + bins).

    Args:
        logits: float32 (n, classes), or log-probabilities.
        labels: int64 (n,).
        top_k: k of the top-k accuracy.
    """
    n, classes = logits.shape
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities, chosen = np.exp(log_probabilities), log_probabilities.argmax(1)
    confidence, right = probabilities.max(1), (chosen == labels).astype(np.float64)
    of_label = probabilities[np.arange(n), labels]
    within = (log_probabilities > log_probabilities[np.arange(n), labels][:, None]).sum(1) < top_k
    brier = (probabilities**2).sum(1) - 2 * of_label + 1
    columns = [np.full(n, i) for i in range(4)]
    blocks = [labels, chosen, labels, confidence_bins(confidence)]
    columns += [4 + i * classes + block for i, block in enumerate(blocks)]
    values = [right, within.astype(np.float64), -log_probabilities[np.arange(n), labels], brier]
    values += [np.ones(n), np.ones(n), right, right - confidence]
    places = np.tile(np.arange(n), len(columns)), np.concatenate(columns)
    return csr_array((np.concatenate(values), places), shape=(n, 4 + 3 * classes + ECE_BINS))


def figures(sums: NDArray[np.float64], top_k: int) -> Replicates:
    """Compute figures from sums of contributions, (replicates, 4 + 3 classes + bins): as ``classification_figures``."""
    classes = (sums.shape[1] - 4 - ECE_BINS) // 3
    right, within, nll, brier = sums[:, :4].T
    support, chosen, true_positives = (sums[:, 4 + i * classes :][:, :classes] for i in range(3))
    total, occurs = support.sum(1), support > 0
    recall = np.divide(true_positives, support, out=np.zeros_like(support), where=occurs)
    f1 = np.where(occurs, 2 * true_positives / np.maximum(support + chosen, 1), 0)
    found = {
        "accuracy": right / total,
        "balanced_accuracy": recall.sum(1) / occurs.sum(1),
        "macro_f1": f1.sum(1) / occurs.sum(1),
        f"top_{top_k}_accuracy": within / total,
        "nll": nll / total,
        "brier": brier / total,
        "ece": np.abs(sums[:, -ECE_BINS:]).sum(1) / total,
    }
    if top_k >= classes:
        del found[f"top_{top_k}_accuracy"]
    return found


def draws(labels: NDArray[np.int64], groups: Sequence[str] | None, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Draw ``REPLICATES`` test sets with replacement, some at a time.

    As many units are drawn as there are, from each stratum its own number. A unit is a group or, without groups, a
    image; a stratum is a class, and groups that hold several classes are one together.

    Args:
        labels: int64 (n,).
        groups: n names, equal for images that belong together; None where each is alone.
        seed: of the draws.

    Yields:
        float32 (some, n): how often each image was drawn.
    """
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, first, unit = np.unique(names, return_index=True, return_inverse=True)
    mixed = np.zeros(len(first), bool)
    mixed[unit[labels != labels[first][unit]]] = True
    stratum = np.where(mixed, -1, labels[first])
    order = np.argsort(stratum, kind="stable")
    _, start, size = np.unique(stratum[order], return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)
    place = np.argsort(order)[unit]
    generator = np.random.default_rng(seed)
    for done in range(0, REPLICATES, DRAWN_AT_ONCE):
        times = np.empty((min(DRAWN_AT_ONCE, REPLICATES - done), len(labels)), np.float32)
        for row in times:
            drawn = start + (generator.random(len(start)) * size).astype(np.int64)
            row[:] = np.bincount(drawn, minlength=len(start))[place]
        yield times


def replicate_figures(
    models: Mapping[str, csr_array], labels: NDArray[np.int64], groups: Sequence[str] | None, top_k: int
) -> dict[str, Replicates]:
    """Compute each model's figures on the same redrawn test sets, from its contributions."""
    sums: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    for times in draws(labels, groups):
        for name, each in models.items():
            sums[name].append((each.T @ times.T).T)
    return {name: figures(np.concatenate(each), top_k) for name, each in sums.items()}


def interval(replicates: NDArray[np.float64]) -> list[float] | None:
    """Return the percentile interval, at ``LEVEL``; None where all replicates are equal, which shows no spread."""
    if np.ptp(replicates) == 0:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return [round(float(low), 6), round(float(high), 6)]


def share_interval(replicates: NDArray[np.float64], units: int) -> list[float]:
    """Return a share's interval: where all or none of the units are right, Clopper and Pearson's exact one."""
    found = interval(replicates)
    if found is not None:
        return found
    exact = binomtest(round(float(replicates[0]) * units), units).proportion_ci(LEVEL)
    return [round(float(exact.low), 6), round(float(exact.high), 6)]
