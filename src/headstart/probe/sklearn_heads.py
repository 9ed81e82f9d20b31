"""The classical heads on fixed features: ridge, nearest neighbours, a tree, a forest and gradient boosting.

Each is fitted at a handful of settings, and the one with the lowest validation loss is kept. All give log-probabilities
of every class, so that they are compared by one loss, the mean negative log-likelihood:

- A tree or a vote can give a class the probability 0, whose loss is infinite. Probabilities are raised to at least
  ``1 / (n + classes)`` and divided by their sum again: Laplace's rule of succession for what n training images never
  showed.
- Ridge's scores are no logits. They are divided by the temperature with the lowest validation loss (Guo et al. 2017,
  "On Calibration of Modern Neural Networks").

Boosting is scikit-learn's histogram one, with a tenth of the features a split: it pays at every size. 50 iterations at
depth 3 for 10 classes took 0.6, 0.9, 1.5 and 3.9 s with 250 x 184, 250 x 512, 3,000 x 184 and 3,000 x 512 features, the
exact one with √width features a split 0.8, 1.4, 7.7 and 15.9 s, to higher losses on other rows each time
(``python benchmarks/studies/boosting.py``, one thread of an AMD EPYC that others used too).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from headstart.probe.logistic import cross_entropy, ridge_path

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
TREE_LEAVES = (3, 10, 30, 100)
"""Training images that a leaf of the one tree has at least; purer leaves than 3 tell certainties that are none."""
FOREST_LEAVES = (1, 3, 10)
FOREST_TREES = 200
DEPTHS = (3, 5)
LEARNING_RATE = 0.1
ITERATIONS = 200
THREADS_PAY = 2_000_000
"""Values of the training features from which boosting uses all cores: below, its threads mostly wait for each other."""
SEED = 0
TEMPERATURES = (1e-3, 1e3)

MOST_CLASSES = {"tree": 100, "forest": 100, "boosting": 50}
"""Beyond which a head is skipped. One tree on 3,000 rows of 184 features took 0.6 s for 10 classes, 2.3 s for 100 and
44 s for 1,000, and a forest's grew alike (one core of an AMD EPYC); boosting grows 200 trees a class.
"""


@dataclass(frozen=True)
class Labelled:
    """Images as the heads see them: ``features`` float32 (n, width), ``labels`` int64 (n,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A head at its best settings.

    Attributes:
        settings: what was tuned, by name.
        predict: from features float32 (n, width) to log-probabilities float32 (n, classes).
        val_loss: mean negative log-likelihood of the validation images, in nats.
    """

    settings: dict[str, float]
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    val_loss: float


def reason_to_skip(name: str, classes: int) -> str | None:
    """Say why a head is not worth its time with so many classes; None where it is."""
    most = MOST_CLASSES.get(name, classes)
    return f"{classes} classes: its time grows with them, and beyond {most} it is skipped" if classes > most else None


def fit(name: str, train: Labelled, validation: Labelled, classes: int, l2s: Sequence[float]) -> Fitted:
    """Fit a head on train and choose its settings on validation; the same ones every time.

    Args:
        name: ``ridge``, ``knn`` (cosine distance, votes weighed by its inverse), ``tree``, ``forest`` or ``boosting``.
        train: fitted to; a class may have no image here, and gets the least probability.
        validation: chosen by.
        classes: number of them.
        l2s: ridge's values of λ, in 1/n ‖XWᵀ + b − Y‖² + λ‖W‖².
    """
    match name:
        case "ridge":
            candidates = _ridges(train, validation, classes, l2s)
        case "boosting":
            candidates = _boostings(train, validation, classes)
        case _:
            candidates = _estimators(name, train, validation, classes)
    return min(candidates, key=lambda fitted: fitted.val_loss)


def _ridges(train: Labelled, validation: Labelled, classes: int, l2s: Sequence[float]) -> Iterator[Fitted]:
    for l2, weight, bias in ridge_path(train.features, train.labels, classes, l2s):
        t = temperature(validation.features @ weight.T + bias, validation.labels)
        yield _judged({"l2": l2, "temperature": t}, partial(_softened, weight / t, bias / t), validation)


def _softened(weight: NDArray[np.float64], bias: NDArray[np.float64], features: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(log_softmax(features @ weight.T + bias, axis=1), np.float32)


def temperature(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Find the T in TEMPERATURES at which ``softmax(scores / T)`` has the lowest loss; scores (n, classes)."""
    found = minimize_scalar(
        lambda log_t: cross_entropy(scores / np.exp(log_t), labels), bounds=np.log(TEMPERATURES), method="bounded"
    )
    return float(np.exp(found.x))


def _estimators(name: str, train: Labelled, validation: Labelled, classes: int) -> Iterator[Fitted]:
    """Fit scikit-learn's estimators, a setting at a time."""
    for settings, estimator in _settings(name, len(train.labels)):
        estimator.fit(train.features, train.labels)
        yield _judged(settings, partial(_probabilities, estimator, len(train.labels), classes), validation)


def _settings(name: str, images: int) -> Iterator[tuple[dict[str, float], Any]]:
    # scikit-learn takes a second to import: no `--help` waits for it.
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
    from sklearn.tree import DecisionTreeClassifier  # noqa: PLC0415

    match name:
        case "knn":
            for k in NEIGHBOURS:
                if k <= images:
                    yield {"neighbours": k}, KNeighborsClassifier(k, weights="distance", metric="cosine", n_jobs=-1)
        case "tree":
            for leaf in TREE_LEAVES:
                yield {"least_in_leaf": leaf}, DecisionTreeClassifier(min_samples_leaf=leaf, random_state=SEED)
        case "forest":
            for leaf in FOREST_LEAVES:
                forest = RandomForestClassifier(FOREST_TREES, min_samples_leaf=leaf, n_jobs=-1, random_state=SEED)
                yield {"least_in_leaf": leaf}, forest
        case _:
            raise ValueError(f"no such head: {name}")


def _boostings(train: Labelled, validation: Labelled, classes: int) -> Iterator[Fitted]:
    """Boost trees of each depth, and keep the iterations up to the lowest validation loss."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    threads = 1 if train.features.size < THREADS_PAY else None
    for depth in DEPTHS:
        boosting = HistGradientBoostingClassifier(
            learning_rate=LEARNING_RATE,
            max_iter=ITERATIONS,
            max_depth=depth,
            max_features=0.1,
            max_bins=63,
            early_stopping=False,
            random_state=SEED,
        )
        with threadpool_limits(threads, user_api="openmp"):
            boosting.fit(train.features, train.labels)
        as_logs = partial(_floored, seen=boosting.classes_, images=len(train.labels), classes=classes)
        stages = boosting.staged_predict_proba(validation.features)
        losses = [cross_entropy(as_logs(stage), validation.labels) for stage in stages]
        best = int(np.argmin(losses))
        settings: dict[str, float] = {"depth": depth, "iterations": best + 1}
        yield Fitted(settings, partial(_at_iteration, boosting, best, as_logs), losses[best])


def _at_iteration(
    boosting: Any, iteration: int, as_logs: Callable[[Any], NDArray[np.float32]], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    return as_logs(next(islice(boosting.staged_predict_proba(features), iteration, None)))


def _judged(
    settings: dict[str, float], predict: Callable[[NDArray[np.float32]], NDArray[np.float32]], validation: Labelled
) -> Fitted:
    return Fitted(settings, predict, cross_entropy(predict(validation.features), validation.labels))


def _probabilities(estimator: Any, images: int, classes: int, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return _floored(estimator.predict_proba(features), estimator.classes_, images, classes)


def _floored(
    probabilities: NDArray[np.float64], seen: NDArray[np.int64], images: int, classes: int
) -> NDArray[np.float32]:
    """Spread the columns of the classes seen in train over all, and take logarithms of nothing less than the floor."""
    full = np.full((len(probabilities), classes), 1 / (images + classes))
    full[:, seen] = np.maximum(full[:, seen], probabilities)
    return np.asarray(np.log(full / full.sum(axis=1, keepdims=True)), np.float32)
