"""The classical heads on fixed features: ridge, nearest neighbours, a tree, a forest and gradient boosting.

Each is fitted at a handful of settings, and the one with the lowest validation loss is kept. All predict
log-probabilities of every class, so that they are compared by one loss, the mean negative log-likelihood:

- A tree or a vote can give a class the probability 0, whose loss is infinite. Probabilities are raised to at least
  ``1 / (n + classes)`` and divided by their sum again: Laplace's rule of succession for a class that none of n training
  images showed.
- Ridge's scores are not logits. With one-hot targets and Gaussian noise of variance σ² in each of them, the probability
  of class k given the scores s is proportional to ``exp(-‖e_k - s‖² / 2σ²)``, which is ``softmax(s / σ²)``. So they are
  divided by σ², the mean squared residual on validation, and by the temperature that fits best after that. Where
  validation is classified without an error, no temperature fits best and σ² alone remains: finite, however well the
  classes are separated. (Targets of (n + 1) / (n + 2) instead of 1, as Platt 1999 has them, are an alternative. On the
  digits they gave the test loss 0.114 instead of 0.121 with 41 validation images, the mean of 25 draws, and 0.084
  instead of 0.079 with all 267.)

Boosting is scikit-learn's histogram one, with a tenth of the features at each split: its time is acceptable at every
size. 50 iterations at depth 3 for 10 classes took 0.6, 0.9, 1.5 and 3.9 s with 250 x 184, 250 x 512, 3,000 x 184 and
3,000 x 512 features; the exact one with √width features at each split took 0.8, 1.4, 7.7 and 15.9 s, with higher losses
on other rows each time (``python -m benchmarks.studies.boosting``, one thread of an AMD EPYC that others used too).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from headstart.probe.logistic import Matrix
from headstart.probe.outputs import Predict
from headstart.targets.likelihood import fit_temperature, negative_log_likelihood

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
TREE_LEAVES = (3, 10, 30, 100)
"""The fewest training images in a leaf of the single tree; leaves of fewer than 3 are overconfident."""
FOREST_LEAVES = (1, 3, 10)
FOREST_TREES = 200
BOOSTING_DEPTHS = (3, 5)
BOOSTING_RATE = 0.1
BOOSTING_ITERATIONS = 200
THREADS_PAY = 2_000_000
"""Number of values in the training features from which boosting uses all cores: below it threads mostly wait."""
MIN_RESIDUAL_VARIANCE = 1e-6
SEED = 0

CLASS_LIMITS = {"tree": 100, "forest": 100, "boosting": 50}
"""The number of classes above which a head is skipped. One tree on 3,000 rows of 184 features took 0.6 s for 10
classes, 2.3 s for 100 and 44 s for 1,000, and a forest's time grew alike (one core of an AMD EPYC); boosting grows 200
trees a class.
"""


SIZE_LIMITS = {"knn": 10**12, "tree": 10**10, "forest": 10**6, "boosting": 10**7}
"""Size above which a head is fitted only where it is asked for; ridge has the linear head's decomposition and takes one
more look at the features. It is images² x features for nearest neighbours, which took 132 s for 70,000 x 96; images x
classes for a forest, which took 83 s and about 3 GB for 70,000 x 10; images x features x classes for the others:
boosting took 29 s for 1,117 x 1,280 x 10, where the linear head took 2 and was better, and in proportion to the figure
above a tree takes 18 minutes at 10^10 (2 cores of an AMD EPYC).
"""
HEADS = ("ridge", "knn", "tree", "forest", "boosting")


@dataclass(frozen=True)
class LabelledFeatures:
    """``features`` float32 (n, width) and ``labels`` int64 (n,) of the same images."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FittedHead:
    """A head at its best settings; ``val_loss`` is the mean negative log-likelihood of validation, in nats."""

    settings: dict[str, float]
    predict: Predict
    val_loss: float


RidgePath = Iterable[tuple[float, Matrix, Matrix]]
"""λ, W and b, as ``ridge_path`` yields them."""
Candidates = Iterator[tuple[dict[str, float], Predict]]
"""The settings that are tried, each with the predictions of a head that was fitted with them."""


def reason_to_skip(name: str, classes: int) -> str | None:
    """Return why a head would take too long with so many classes; None where it would not."""
    limit = CLASS_LIMITS.get(name, classes)
    return f"{classes} classes: its time grows with them, and beyond {limit} it is skipped" if classes > limit else None


def reason_to_leave_out(name: str, images: int, width: int, classes: int) -> str | None:
    """Return why ``auto`` leaves a head out, for so many training images, features and classes; None if it does not."""
    sizes = {"knn": images**2 * width, "forest": images * classes}
    size = sizes.get(name, images * width * classes)
    if size <= SIZE_LIMITS.get(name, size):
        return None
    return f"it would take long; `probe.heads: [{', '.join(HEADS)}]` fits it all the same"


def fit_head(
    name: str, train: LabelledFeatures, validation: LabelledFeatures, classes: int, ridge: RidgePath
) -> FittedHead:
    """Fit a head on train and choose its settings on validation; deterministic.

    ``name`` is ``ridge``, whose ``ridge`` path is fitted already, ``knn`` (cosine distance, votes weighted by its
    inverse), ``tree``, ``forest`` or ``boosting``. A class without an image in train gets the lowest probability.
    """
    match name:
        case "ridge":
            candidates = _ridge_candidates(validation, classes, ridge)
        case "boosting":
            candidates = _boosting_candidates(train, validation, classes)
        case _:
            candidates = _estimator_candidates(name, train, classes)
    heads = (
        FittedHead(settings, predict, negative_log_likelihood(predict(validation.features), validation.labels))
        for settings, predict in candidates
    )
    return min(heads, key=lambda head: head.val_loss)


def _ridge_candidates(validation: LabelledFeatures, classes: int, ridge: RidgePath) -> Candidates:
    targets = np.eye(classes)[validation.labels]
    for l2, weight, bias in ridge:
        scores = validation.features @ weight.T + bias
        variance = max(float(((scores - targets) ** 2).mean()), MIN_RESIDUAL_VARIANCE)
        temperature = variance * fit_temperature(scores / variance, validation.labels)
        predict = partial(_linear_log_probabilities, weight / temperature, bias / temperature)
        yield {"l2": l2, "temperature": temperature}, predict


def _linear_log_probabilities(
    weight: NDArray[np.float64], bias: NDArray[np.float64], features: NDArray[Any]
) -> NDArray[np.float32]:
    return np.asarray(log_softmax(features @ weight.T + bias, axis=1), np.float32)


def _estimator_candidates(name: str, train: LabelledFeatures, classes: int) -> Candidates:
    """Fit a scikit-learn estimator at each of its settings."""
    # scikit-learn takes a second to import: no `--help` waits for it.
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
    from sklearn.tree import DecisionTreeClassifier  # noqa: PLC0415

    images = len(train.labels)
    knn = partial(KNeighborsClassifier, weights="distance", metric="cosine", n_jobs=-1)
    tree = partial(DecisionTreeClassifier, random_state=SEED)
    forest = partial(RandomForestClassifier, FOREST_TREES, n_jobs=-1, random_state=SEED)
    estimators: dict[str, Iterator[tuple[dict[str, float], Any]]] = {
        "knn": (({"neighbours": k}, knn(k)) for k in NEIGHBOURS if k <= images),
        "tree": (({"least_in_leaf": leaf}, tree(min_samples_leaf=leaf)) for leaf in TREE_LEAVES),
        "forest": (({"least_in_leaf": leaf}, forest(min_samples_leaf=leaf)) for leaf in FOREST_LEAVES),
    }
    for settings, estimator in estimators[name]:
        estimator.fit(train.features, train.labels)
        yield settings, partial(_log_probabilities, estimator, images, classes)


def _boosting_candidates(train: LabelledFeatures, validation: LabelledFeatures, classes: int) -> Candidates:
    """Boost trees of each depth, and keep the iterations up to the lowest validation loss."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    threads = 1 if train.features.size < THREADS_PAY else None
    for depth in BOOSTING_DEPTHS:
        boosting = HistGradientBoostingClassifier(
            learning_rate=BOOSTING_RATE,
            max_iter=BOOSTING_ITERATIONS,
            max_depth=depth,
            max_features=0.1,
            max_bins=63,
            early_stopping=False,
            random_state=SEED,
        )
        with threadpool_limits(threads, user_api="openmp"):
            boosting.fit(train.features, train.labels)
        to_log = partial(_floored_log, seen=boosting.classes_, images=len(train.labels), classes=classes)
        by_iteration = boosting.staged_predict_proba(validation.features)
        losses = [negative_log_likelihood(to_log(each), validation.labels) for each in by_iteration]
        best = int(np.argmin(losses))
        yield {"depth": depth, "iterations": best + 1}, partial(_at_iteration, boosting, best, to_log)


def _at_iteration(
    boosting: Any, iteration: int, to_log: Callable[[Any], NDArray[np.float32]], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    return to_log(next(islice(boosting.staged_predict_proba(features), iteration, None)))


def _log_probabilities(estimator: Any, images: int, classes: int, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return _floored_log(estimator.predict_proba(features), estimator.classes_, images, classes)


def _floored_log(
    probabilities: NDArray[np.float64], seen: NDArray[np.int64], images: int, classes: int
) -> NDArray[np.float32]:
    """Return the logarithms of probabilities of at least the floor, float32 (n, classes).

    The probabilities are float64 (n, seen classes), of the classes that occur among so many training images.
    """
    full = np.full((len(probabilities), classes), 1 / (images + classes))
    full[:, seen] = np.maximum(full[:, seen], probabilities)
    return np.asarray(np.log(full / full.sum(axis=1, keepdims=True)), np.float32)
