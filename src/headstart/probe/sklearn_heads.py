"""The classical heads on fixed features: ridge, nearest neighbours, a tree, a forest and gradient boosting.

Each is fitted at a handful of settings, and the one with the lowest validation loss is kept. All predict the target's
outputs, so that they are compared by its loss, of classes by log-probabilities of every class:

- A tree or a vote can give a class the probability 0, whose loss is infinite. Probabilities are raised to at least
  ``1 / (n + classes)`` and divided by their sum again: Laplace's rule of succession for a class that none of n training
  images showed.
- Of other targets trees, forests and neighbours predict the mean of the responses (``Target.responses``) as regressors:
  the probability of each label or of being above each grade, which Laplace's rule keeps from 0 and 1 and whose logit is
  the output, or the number itself. (On 0 and 1 the squared error is half of Gini's impurity.) What is unknown is left
  out: where a label or number is unknown of some images, each has a regressor of its own, as boosting always has. A
  forest tries √width features at a split, as for classes; with a third of 184 its squared error on digits as numbers
  was 0.162 instead of 0.189, in three times the time.
- Ridge's scores are not logits. With one-hot targets and Gaussian noise of variance σ² in each of them, the probability
  of class k given the scores s is proportional to ``exp(-‖e_k - s‖² / 2σ²)``, which is ``softmax(s / σ²)``. So they are
  divided by σ², the mean squared residual on validation, and by the temperature that fits best after that. Where
  validation is classified without an error, no temperature fits best and σ² alone remains: finite, however well the
  classes are separated. (Targets of (n + 1) / (n + 2) instead of 1, as Platt 1999 has them, are an alternative. On the
  digits they gave the test loss 0.114 instead of 0.121 with 41 validation images, the mean of 25 draws, and 0.084
  instead of 0.079 with all 267.)
- Of labels and grades, ridge's score s is made a logit by linear discriminant analysis of validation: where the images
  with a label, of frequency π, and those without have normal scores of means m₁ and m₀ and one variance v, it is
  ``logit π + (m₁ - m₀)(s - (m₁ + m₀)/2) / v``. Of numbers ridge is the probe's own head.

Boosting is scikit-learn's histogram one, with a tenth of the features at each split: its time is acceptable at every
size. 50 iterations at depth 3 for 10 classes took 0.6, 0.9, 1.5 and 3.9 s with 250 x 184, 250 x 512, 3,000 x 184 and
3,000 x 512 features; the exact one with √width features at each split took 0.8, 1.4, 7.7 and 15.9 s, with higher losses
on other rows each time (``python -m benchmarks.studies.boosting``, one thread of an AMD EPYC that others used too).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logit

from headstart.probe.logistic import Matrix
from headstart.probe.outputs import Predict
from headstart.targets.arrays import known
from headstart.targets.likelihood import fit_temperature
from headstart.targets.target import Target, Values, mean_loss

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


SIZE_LIMITS = {"ridge": 10**13, "knn": 10**12, "tree": 10**10, "forest": 10**6, "boosting": 10**7}
"""Size above which a head is fitted only where it is asked for; ridge has the linear head's decomposition and takes one
more look at the features, but for labels that are unknown of some images: each has a decomposition of its own, and the
size is labels x images x features² (for 1 x 50,000 x 2,048² it took 17 s). It is images² x features for nearest
neighbours, which took 132 s for 70,000 x 96; images x outputs for a forest, which took 83 s and about 3 GB for 70,000 x
10 classes; images x features x outputs for the others: boosting took 29 s for 1,117 x 1,280 x 10, where the linear head
took 2 and was better, and in proportion to the figure above a tree takes 18 minutes at 10^10 (2 cores of an AMD EPYC).
"""
HEADS = ("ridge", "knn", "tree", "forest", "boosting")


@dataclass(frozen=True)
class LabelledFeatures:
    """``features`` float32 (n, width) and the target's ``values`` of the same images."""

    features: NDArray[np.float32]
    values: Values


@dataclass(frozen=True)
class FittedHead:
    """A head at its best settings; ``val_loss`` is the target's mean loss on validation."""

    settings: dict[str, float]
    predict: Predict
    val_loss: float


RidgePath = Iterable[tuple[float, Matrix, Matrix]]
"""λ, W and b, as ``ridge_path`` yields them."""
Staged = Callable[[NDArray[np.float32]], Iterator[NDArray[np.float32]]]
"""From features to the outputs after each iteration of boosting."""
Candidates = Iterator[tuple[dict[str, float], Predict, NDArray[np.float32]]]
"""The settings that are tried, each with what predicts as the head that was fitted with them, and its outputs on
validation."""


def reason_to_skip(name: str, target: Target) -> str | None:
    """Return why a head would be the probe's own, or take too long with so many outputs; None where it would not."""
    if name == "ridge" and target.link == "identity":
        return "it is the probe's own head: least squares and the same penalty"
    outputs, what = target.outputs, "classes" if target.link == "softmax" else "outputs"
    limit = CLASS_LIMITS.get(name, outputs)
    return f"{outputs} {what}: its time grows with them, and beyond {limit} it is skipped" if outputs > limit else None


def reason_to_leave_out(name: str, images: int, width: int, outputs: int, unknown: int = 0) -> str | None:
    """Return why ``auto`` leaves a head out, for so many training images, features and outputs; None if it does not.

    ``unknown`` is how many of the outputs are unknown of some images.
    """
    sizes = {"ridge": unknown * images * width**2, "knn": images**2 * width, "forest": images * outputs}
    size = sizes.get(name, images * width * outputs)
    if size <= SIZE_LIMITS.get(name, size):
        return None
    return f"it would take long; `probe.heads: [{', '.join(HEADS)}]` fits it all the same"


def fit_head(
    name: str, train: LabelledFeatures, validation: LabelledFeatures, target: Target, ridge: RidgePath
) -> FittedHead:
    """Fit a head on train and choose its settings on validation; deterministic.

    ``name`` is ``ridge``, whose ``ridge`` path is fitted already, ``knn`` (cosine distance, votes weighted by its
    inverse), ``tree``, ``forest`` or ``boosting``. A class without an image in train gets the lowest probability.
    """
    match name:
        case "ridge":
            candidates = _ridge_candidates(validation, target, ridge)
        case "boosting":
            candidates = _boosting_candidates(train, validation, target)
        case _:
            candidates = _estimator_candidates(name, train, validation, target)
    heads = (
        FittedHead(settings, predict, mean_loss(target, outputs, validation.values))
        for settings, predict, outputs in candidates
    )
    return min(heads, key=lambda head: head.val_loss)


def _ridge_candidates(validation: LabelledFeatures, target: Target, ridge: RidgePath) -> Candidates:
    responses = target.responses(validation.values, np.empty(0))
    for l2, weight, bias in ridge:
        scores = validation.features @ weight.T + bias
        if target.link == "logistic":
            slope, offset = _discriminant(scores, responses)
            predict = partial(_linear, weight * slope[:, None], bias * slope + offset)
            yield {"l2": l2}, predict, predict(validation.features)
            continue
        variance = max(float(((scores - responses) ** 2).mean()), MIN_RESIDUAL_VARIANCE)
        temperature = variance * fit_temperature(target, scores / variance, validation.values)
        predict = partial(_linear_log_probabilities, weight / temperature, bias / temperature)
        yield {"l2": l2, "temperature": temperature}, predict, predict(validation.features)


def _discriminant(
    scores: NDArray[np.float64], responses: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the slope and the offset that make logits of each output's scores, (outputs,); both inputs (n, outputs).

    Where validation has no image with it, or none without, the means are taken to be 0 and 1.
    """
    present, is_known = known(responses)
    absent = is_known - present
    counts = np.stack([absent.sum(axis=0), present.sum(axis=0)])
    means = np.stack([(scores * each).sum(axis=0) for each in (absent, present)]) / np.maximum(counts, 1)
    within = ((scores - means[0]) ** 2 * absent + (scores - means[1]) ** 2 * present).sum(axis=0)
    variance = np.maximum(within / np.maximum(counts.sum(axis=0), 1), MIN_RESIDUAL_VARIANCE)
    means = np.where(counts.all(axis=0), means, [[0.0], [1.0]])
    slope = (means[1] - means[0]) / variance
    return slope, logit((counts[1] + 0.5) / (counts.sum(axis=0) + 1)) - slope * means.mean(axis=0)


def _linear(weight: NDArray[np.float64], bias: NDArray[np.float64], features: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(features @ weight.T + bias, np.float32)


def _linear_log_probabilities(
    weight: NDArray[np.float64], bias: NDArray[np.float64], features: NDArray[Any]
) -> NDArray[np.float32]:
    return np.asarray(log_softmax(features @ weight.T + bias, axis=1), np.float32)


def _estimator_candidates(
    name: str, train: LabelledFeatures, validation: LabelledFeatures, target: Target
) -> Candidates:
    """Fit a scikit-learn estimator at each of its settings; for neighbours validation is searched once."""
    # scikit-learn takes a second to import: no `--help` waits for it.
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # noqa: PLC0415
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor  # noqa: PLC0415

    is_class, images = target.link == "softmax", len(train.values)
    if not is_class:
        responses = target.responses(train.values, np.empty(0))
        images = int((~np.isnan(responses)).sum(axis=0).min())

    def fit(estimator: Any) -> list[Any]:
        if is_class:
            return [estimator.fit(train.features, train.values)]
        return _fit_regressors(estimator, train.features, responses)

    def predict_of(fitted: list[Any]) -> Predict:
        if is_class:
            return partial(_log_probabilities, fitted[0], images, target.outputs)
        return partial(_regressed, fitted, _floor(responses), target)

    if name == "knn":
        kind = KNeighborsClassifier if is_class else KNeighborsRegressor
        neighbours = [k for k in NEIGHBOURS if k <= images]
        fitted = fit(kind(neighbours[-1], weights="distance", metric="cosine", n_jobs=-1))
        found = [estimator.kneighbors(validation.features) for estimator in fitted]
        for k in neighbours:
            of_k = [copy(estimator).set_params(n_neighbors=k) for estimator in fitted]
            searched = [copy(estimator) for estimator in of_k]
            for estimator, (distances, places) in zip(searched, found, strict=True):
                estimator.kneighbors = partial(_first_columns, distances, places, k)
            yield {"neighbours": k}, predict_of(of_k), predict_of(searched)(validation.features)
        return
    tree = partial(DecisionTreeClassifier if is_class else DecisionTreeRegressor, random_state=SEED)
    forest = partial(
        RandomForestClassifier if is_class else RandomForestRegressor,
        FOREST_TREES,
        max_features="sqrt",
        n_jobs=-1,
        random_state=SEED,
    )
    leaves, grown = {"tree": (TREE_LEAVES, tree), "forest": (FOREST_LEAVES, forest)}[name]
    for leaf in leaves:
        predict = predict_of(fit(grown(min_samples_leaf=leaf)))
        yield {"least_in_leaf": leaf}, predict, predict(validation.features)


def _first_columns(
    distances: NDArray[np.floating], places: NDArray[np.int64], count: int, _: NDArray[np.float32]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Return the nearest of each image's neighbours, which are in order, (n, count) each."""
    return distances[:, :count], places[:, :count]


def _fit_regressors(estimator: Any, features: NDArray[np.float32], responses: NDArray[np.float64]) -> list[Any]:
    """Fit one for all outputs, or where some response is unknown one for each output, on the images that have it."""
    from sklearn.base import clone  # noqa: PLC0415

    is_known = ~np.isnan(responses)
    if is_known.all():
        return [estimator.fit(features, responses if responses.shape[1] > 1 else responses[:, 0])]
    columns = zip(is_known.T, responses.T, strict=True)
    return [clone(estimator).fit(features[of_output], column[of_output]) for of_output, column in columns]


def _regressed(
    estimators: Sequence[Any], floor: NDArray[np.float64], target: Target, features: NDArray[np.float32]
) -> NDArray[np.float32]:
    return _to_outputs(np.column_stack([estimator.predict(features) for estimator in estimators]), floor, target)


def _floor(responses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Laplace's probability of what none of the images with a known response showed, (outputs,)."""
    return np.asarray(1 / ((~np.isnan(responses)).sum(axis=0) + 2))


def _to_outputs(means: NDArray[np.float64], floor: NDArray[np.float64], target: Target) -> NDArray[np.float32]:
    """Return the outputs, float32 (n, outputs), for these means of the responses."""
    return np.asarray(means if target.link == "identity" else logit(np.clip(means, floor, 1 - floor)), np.float32)


def _boosting_candidates(train: LabelledFeatures, validation: LabelledFeatures, target: Target) -> Candidates:
    """Boost trees of each depth, and keep the iterations up to the lowest validation loss."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    threads = 1 if train.features.size < THREADS_PAY else None
    for depth in BOOSTING_DEPTHS:
        with threadpool_limits(threads, user_api="openmp"):
            by_iteration = _boost(train, target, depth)
        losses = [mean_loss(target, each, validation.values) for each in by_iteration(validation.features)]
        best = int(np.argmin(losses))
        predict = partial(_at_iteration, by_iteration, best)
        yield {"depth": depth, "iterations": best + 1}, predict, predict(validation.features)


def _boost(train: LabelledFeatures, target: Target, depth: int) -> Staged:
    """Boost trees for all classes, or for each output; return what yields the outputs after each iteration."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor  # noqa: PLC0415

    kind = HistGradientBoostingRegressor if target.link == "identity" else HistGradientBoostingClassifier
    boosting = partial(
        kind,
        learning_rate=BOOSTING_RATE,
        max_iter=BOOSTING_ITERATIONS,
        max_depth=depth,
        max_features=0.1,
        max_bins=63,
        early_stopping=False,
        random_state=SEED,
    )
    if target.link == "softmax":
        all_classes = boosting().fit(train.features, train.values)
        seen, images = all_classes.classes_, len(train.values)
        to_log = partial(_floored_log, seen=seen, images=images, classes=target.outputs)
        return lambda features: map(to_log, all_classes.staged_predict_proba(features))
    responses = target.responses(train.values, np.empty(0))
    floor, columns = _floor(responses), [(~np.isnan(column), column) for column in responses.T]
    each = [boosting().fit(train.features[of_output], column[of_output]) for of_output, column in columns]

    def staged(features: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        if target.link == "identity":
            means = (one.staged_predict(features) for one in each)
        else:
            means = (map(itemgetter((slice(None), 1)), one.staged_predict_proba(features)) for one in each)
        return (_to_outputs(np.column_stack(stage), floor, target) for stage in zip(*means, strict=True))

    return staged


def _at_iteration(staged: Staged, iteration: int, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return next(islice(staged(features), iteration, None))


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
