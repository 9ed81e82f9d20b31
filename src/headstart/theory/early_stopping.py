"""The study of early stopping as L2 on the user's own features; see ``headstart study early-stopping --help``."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.core import paths
from headstart.core.io import write_json, write_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.features.cache import read_features
from headstart.probe.logistic import logistic_path, principal_axes
from headstart.targets.likelihood import negative_log_likelihood
from headstart.theory import drawing
from headstart.theory.implicit_l2 import (
    descent_filter,
    descent_path,
    equivalent_l2,
    nearest_l2,
    ridge_filter,
    safe_rate,
)
from headstart.theory.oracle import Array

POINTS_PER_DECADE = 12
PATH_MARGIN = 10.0
"""The λ path extends by this factor beyond the theory's λ of the first and of the last step."""
CLOSE_FACTOR = 2.0
"""The factor within which the nearest λ counts as close to the theory's."""

logger = logging.getLogger(__name__)


class Stop(NamedTuple):
    """Gradient descent after some steps, and the λ of the penalty nearest to it.

    ``theory_l2`` is 1/(2τt); ``nearest_l2`` the λ of the path's nearest point, ``distance`` that point's ‖W − W_λ‖/‖W‖,
    ``at_end`` whether it is an end of the path; ``squared_loss_l2`` the nearest λ by the exact filters of the squared
    loss, NaN where that is an end of their path.
    """

    steps: int
    theory_l2: float
    nearest_l2: float
    distance: float
    at_end: bool
    squared_loss_l2: float
    val_loss: float


def run(steps: int) -> None:
    """Compare the two paths and write the figures; raises UserError where the features are missing."""
    prepared = PreparedDataset.open()
    train, validation = (read_features(prepared.rows(split)) for split in ("train", "validation"))
    train_labels, labels, classes = read_values("train"), read_values("validation"), len(prepared.classes)
    rate = safe_rate(train)
    l2s = _log_spaced(equivalent_l2(rate, steps) / PATH_MARGIN, equivalent_l2(rate, 1) * PATH_MARGIN)[::-1]
    weights, l2_losses = [], []
    for _, weight, bias in logistic_path(train, train_labels, classes, l2s.tolist()):
        weights.append(weight)
        l2_losses.append(negative_log_likelihood(validation @ weight.T + bias, labels))
    logger.info("λ path: %d points from %.1e to %.1e", len(l2s), l2s[0], l2s[-1])

    counts = np.unique(_log_spaced(1, steps).round().astype(int)).tolist()
    squared = _squared_loss_l2s(train, np.eye(classes)[train_labels], rate, counts)
    path, stops = np.array(weights), []
    for (t, weight, bias), squared_l2 in zip(
        descent_path(train, train_labels, classes, rate, counts), squared, strict=True
    ):
        nearest = nearest_l2(weight, l2s, path)
        val_loss = negative_log_likelihood(validation @ weight.T + bias, labels)
        theory = equivalent_l2(rate, t)
        stops.append(Stop(t, theory, nearest.l2, nearest.distance, nearest.at_end, squared_l2, val_loss))
        logger.info("step %d  1/(2τt) %.1e  nearest λ %.1e  validation %.4f", t, theory, nearest.l2, val_loss)

    data = {"pictures": len(train), "width": train.shape[1], "classes": classes, "rate": rate}
    figures = data | _summary(stops, l2s, l2_losses)
    write_table(paths.STUDY / "early_stopping.csv", Stop._fields, stops)
    write_json(paths.STUDY / "early_stopping.json", figures)
    _draw_paths(stops, l2s, l2_losses)
    if figures["best_stop"]["steps"] == steps:
        logger.info("the validation loss still falls at the last step: more --steps would show where it turns")
    logger.info(
        "nearest λ / (1/(2τt)): median %.2f, within a factor of %g over %.1f decades of t; see %s/early_stopping.*",
        figures["median_ratio"], CLOSE_FACTOR, figures["close"]["decades"], paths.STUDY,
    )  # fmt: skip


def _log_spaced(low: float, high: float) -> Array:
    return np.geomspace(low, high, 1 + int(np.ceil(POINTS_PER_DECADE * np.log10(high / low))))


def _squared_loss_l2s(
    features: NDArray[np.floating], one_hot: Array, rate: float, counts: Sequence[int]
) -> list[float]:
    """Return the nearest λ on ``1/n ‖XW − Y‖²`` by the exact filters, at the same τt.

    The curvature of that loss is up to four times Böhning's bound for the softmax: the step is an eighth, and there are
    eight times as many.
    """
    mean, eigenvalues, axes = principal_axes(features)
    present = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    eigenvalues, axes = eigenvalues[present], axes[:, present]
    # The least-squares coefficient along an eigenvector, its norm over the classes.
    coefficients = np.linalg.norm(axes.T @ ((features - mean).T @ one_hot / len(features)), axis=1) / eigenvalues
    l2s = _log_spaced(equivalent_l2(rate, counts[-1]) / PATH_MARGIN, equivalent_l2(rate, 1) * PATH_MARGIN)
    path = np.array([ridge_filter(eigenvalues, l2) * coefficients for l2 in l2s])
    filtered = (descent_filter(eigenvalues, rate / 8, 8 * t) * coefficients for t in counts)
    nearest = (nearest_l2(weight, l2s, path) for weight in filtered)
    return [math.nan if point.at_end else point.l2 for point in nearest]


def _summary(stops: Sequence[Stop], l2s: Array, l2_losses: Sequence[float]) -> dict[str, Any]:
    """Return how near the theory is, over which steps, and where each path's validation loss is lowest."""
    inside = [stop for stop in stops if not stop.at_end]
    ratios = [stop.nearest_l2 / stop.theory_l2 for stop in inside]
    runs = [
        [stop.steps for stop in run]
        for close, run in groupby(
            inside, key=lambda stop: 1 / CLOSE_FACTOR <= stop.nearest_l2 / stop.theory_l2 <= CLOSE_FACTOR
        )
        if close
    ]
    first, last = max(((run[0], run[-1]) for run in runs), key=lambda ends: ends[1] / ends[0], default=(0, 0))
    best, best_l2 = min(stops, key=lambda stop: stop.val_loss), int(np.argmin(l2_losses))
    return {
        "median_ratio": _four_digits(np.median(ratios)) if ratios else None,
        "smallest_ratio": _four_digits(min(ratios)) if ratios else None,
        "largest_ratio": _four_digits(max(ratios)) if ratios else None,
        "close": {
            "factor": CLOSE_FACTOR,
            "first_step": first,
            "last_step": last,
            "decades": _four_digits(np.log10(last / first)) if last else 0.0,
        },
        "largest_distance": _four_digits(max(stop.distance for stop in stops)),
        "best_stop": {
            "steps": best.steps,
            "theory_l2": _four_digits(best.theory_l2),
            "nearest_l2": _four_digits(best.nearest_l2),
            "val_loss": _four_digits(best.val_loss),
        },
        "best_l2": {"l2": _four_digits(l2s[best_l2]), "val_loss": _four_digits(l2_losses[best_l2])},
    }


def _four_digits(figure: float) -> float:
    return float(f"{figure:.4g}")


def _draw_paths(stops: Sequence[Stop], l2s: Array, l2_losses: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415  (see drawing)

    figure, left, right = drawing.two_panels()
    steps, theory = [stop.steps for stop in stops], np.array([stop.theory_l2 for stop in stops])

    left.fill_between(
        steps,
        theory / CLOSE_FACTOR,
        theory * CLOSE_FACTOR,
        color="#e4e4e4",
        label=f"within a factor of {CLOSE_FACTOR:g}",
    )
    left.loglog(steps, theory, color=drawing.GREY, linestyle="--", label="theory, λ = 1/(2τt)")
    left.loglog(
        steps, [stop.squared_loss_l2 for stop in stops], color=drawing.GREEN, linewidth=1.2, label="squared loss, exact"
    )
    inside = [stop for stop in stops if not stop.at_end]
    left.loglog(
        [stop.steps for stop in inside],
        [stop.nearest_l2 for stop in inside],
        color=drawing.BLUE, marker="o", markersize=3.5, linestyle="none", label="softmax, measured",
    )  # fmt: skip
    left.set(title="The λ whose solution is nearest", xlabel="steps of gradient descent, t", ylabel="λ")
    left.legend(frameon=False)

    right.semilogx(theory, [stop.val_loss for stop in stops], color=drawing.BLUE, label="gradient descent, at 1/(2τt)")
    right.semilogx(l2s, l2_losses, color=drawing.ORANGE, linestyle="-.", label="penalty λ‖W‖²")
    best, best_l2 = min(stops, key=lambda stop: stop.val_loss), int(np.argmin(l2_losses))
    right.plot(best.theory_l2, best.val_loss, color=drawing.BLUE, marker="o")
    right.plot(l2s[best_l2], l2_losses[best_l2], color=drawing.ORANGE, marker="s")
    right.invert_xaxis()
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    right.set(title="Cross-entropy on validation", xlabel="λ, or 1/(2τt)   (training longer →)", ylabel="nats an image")
    right.legend(frameon=False)
    drawing.save(figure, paths.STUDY / "early_stopping.svg")
