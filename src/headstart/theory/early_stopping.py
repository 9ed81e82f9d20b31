"""The study of early stopping as L2 on the user's own features; see ``headstart study early-stopping --help``."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import write_json, write_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.features.cache import read_features
from headstart.probe.logistic import linear_path, principal_axes
from headstart.targets.target import Link, mean_loss
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

WORDS: dict[Link, tuple[str, str, str]] = {
    "softmax": ("softmax", "Cross-entropy", "nats an image"),
    "logistic": ("logistic loss", "Binary cross-entropy", "nats an image"),
    "identity": ("squared loss", "Squared error", "variances"),
}
"""What the figures call a target's loss, on validation, and its unit."""

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
    target, train_values, values = prepared.target, read_values("train"), read_values("validation")
    train, validation = (read_features(prepared.rows(split)) for split in ("train", "validation"))
    responses = target.responses(train_values, np.empty(0))
    whole = ~np.isnan(responses).any(axis=1)
    if not whole.any():
        raise UserError("headstart study: no training image has all labels or numbers known, which the theory is about")
    train, train_values, responses = train[whole], train_values[whole], responses[whole]
    rate = safe_rate(train, target)
    l2s = _log_spaced(equivalent_l2(rate, steps) / PATH_MARGIN, equivalent_l2(rate, 1) * PATH_MARGIN)[::-1]
    weights, l2_losses = [], []
    for _, weight, bias in linear_path(train, train_values, target, l2s.tolist()):
        weights.append(weight)
        l2_losses.append(mean_loss(target, validation @ weight.T + bias, values))
    logger.info("λ path: %d points from %.1e to %.1e", len(l2s), l2s[0], l2s[-1])

    counts = np.unique(_log_spaced(1, steps).round().astype(int)).tolist()
    least_squares = _LeastSquares.of(train, responses)
    # The curvature of the squared loss is up to eight times that of the others: smaller steps, as many more.
    finer = 1 if target.link == "identity" else 8
    squared = least_squares.nearest(rate / finer, [finer * t for t in counts])
    path, stops, errors = np.array(weights), [], []
    for (t, weight, bias), squared_l2 in zip(
        descent_path(train, train_values, target, rate, counts), squared, strict=True
    ):
        nearest = nearest_l2(weight, l2s, path)
        val_loss = mean_loss(target, validation @ weight.T + bias, values)
        theory = equivalent_l2(rate, t)
        stops.append(Stop(t, theory, nearest.l2, nearest.distance, nearest.at_end, squared_l2, val_loss))
        if target.link == "identity":
            errors.append(least_squares.distance(weight, rate, t))
        logger.info("step %d  1/(2τt) %.1e  nearest λ %.1e  validation %.4f", t, theory, nearest.l2, val_loss)

    data = {"pictures": len(train), "width": train.shape[1], "classes": target.outputs, "rate": rate}
    figures = data | _summary(stops, l2s, l2_losses)
    if errors:
        figures["largest_distance_to_the_filter"] = _four_digits(max(errors))
        at_theory = np.interp(-np.log([stop.theory_l2 for stop in stops]), -np.log(l2s), l2_losses)
        ratios = np.array([stop.val_loss for stop in stops]) / at_theory
        figures["val_loss_over_the_penaltys"] = [_four_digits(ratios.min()), _four_digits(ratios.max())]
    write_table(paths.STUDY / "early_stopping.csv", Stop._fields, stops)
    write_json(paths.STUDY / "early_stopping.json", figures)
    _draw_paths(stops, l2s, l2_losses, WORDS[target.link])
    if figures["best_stop"]["steps"] == steps:
        logger.info("the validation loss still falls at the last step: more --steps would show where it turns")
    logger.info(
        "nearest λ / (1/(2τt)): median %.2f, within a factor of %g over %.1f decades of t; see %s/early_stopping.*",
        figures["median_ratio"], CLOSE_FACTOR, figures["close"]["decades"], paths.STUDY,
    )  # fmt: skip


def _log_spaced(low: float, high: float) -> Array:
    return np.geomspace(low, high, 1 + int(np.ceil(POINTS_PER_DECADE * np.log10(high / low))))


class _LeastSquares(NamedTuple):
    """``1/n ‖XW − Y‖²`` along the features' principal axes whose variance is not 0.

    The variances (axes,), the axes (width, axes), and W, the solution without a penalty, (axes, outputs).
    """

    eigenvalues: Array
    axes: Array
    solution: Array

    @classmethod
    def of(cls, features: NDArray[np.floating], responses: Array) -> "_LeastSquares":
        mean, eigenvalues, axes = principal_axes(features)
        present = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
        eigenvalues, axes = eigenvalues[present], axes[:, present]
        covariances = axes.T @ ((features - mean).T @ responses / len(features))
        return cls(eigenvalues, axes, covariances / eigenvalues[:, None])

    def nearest(self, rate: float, counts: Sequence[int]) -> list[float]:
        """Return the λ nearest to gradient descent after each of the steps, by the exact filters; NaN at an end."""
        coefficients = np.linalg.norm(self.solution, axis=1)
        l2s = _log_spaced(equivalent_l2(rate, counts[-1]) / PATH_MARGIN, equivalent_l2(rate, counts[0]) * PATH_MARGIN)
        path = np.array([ridge_filter(self.eigenvalues, l2) * coefficients for l2 in l2s])
        filtered = (descent_filter(self.eigenvalues, rate, t) * coefficients for t in counts)
        points = (nearest_l2(weight, l2s, path) for weight in filtered)
        return [math.nan if point.at_end else point.l2 for point in points]

    def distance(self, weight: Array, rate: float, steps: int) -> float:
        """Return how far a weight is from what the filter makes of the solution, relative to it."""
        expected = self.axes @ (descent_filter(self.eigenvalues, rate, steps)[:, None] * self.solution)
        return float(np.linalg.norm(weight.T - expected) / np.linalg.norm(expected))


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


def _draw_paths(stops: Sequence[Stop], l2s: Array, l2_losses: Sequence[float], words: tuple[str, str, str]) -> None:
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
        color=drawing.BLUE, marker="o", markersize=3.5, linestyle="none", label=f"{words[0]}, measured",
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
    right.set(title=f"{words[1]} on validation", xlabel="λ, or 1/(2τt)   (training longer →)", ylabel=words[2])
    right.legend(frameon=False)
    drawing.save(figure, paths.STUDY / "early_stopping.svg")
