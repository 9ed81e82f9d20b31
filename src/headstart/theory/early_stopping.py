"""ℓ2 ⇔ early stopping on the user's own features; what it reads and writes is in ``headstart study --help``."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.core import paths
from headstart.core.io import write_json, write_table
from headstart.data.dataset import PreparedDataset, read_labels
from headstart.features.cache import read_features
from headstart.probe.logistic import cross_entropy, l2_path, principal_axes
from headstart.theory import drawing
from headstart.theory.implicit_l2 import (
    descent_filter,
    descent_path,
    equivalent_l2,
    nearest_l2,
    ridge_filter,
    safe_rate,
)

POINTS_A_DECADE = 12
SPARE = 10.0
"""The λ path goes this factor beyond what the theory says of the first and of the last step."""
CLOSE = 2.0
"""The factor within which a nearest λ counts as the theory's."""

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)


class Stop(NamedTuple):
    """Gradient descent after some steps, and the penalty that it is like.

    ``theory_l2`` is 1/(2τt); ``nearest_l2`` the λ of the nearest point of the path, ``distance`` of its W relative to
    ‖W‖, ``at_end`` where the path ended before it; ``squared_loss_l2`` the nearest λ by the exact filters, NaN
    where that path ended before it.
    """

    steps: int
    theory_l2: float
    nearest_l2: float
    distance: float
    at_end: bool
    squared_loss_l2: float
    val_loss: float


def run(steps: int) -> None:
    """Compare the two paths, write the figures and the image; raises UserError where the features are missing."""
    prepared = PreparedDataset.open()
    train, validation = (read_features(prepared.rows(split)) for split in ("train", "validation"))
    train_labels, labels, classes = read_labels("train"), read_labels("validation"), len(prepared.classes)
    rate = safe_rate(train)
    l2s = _log_spaced(equivalent_l2(rate, steps) / SPARE, equivalent_l2(rate, 1) * SPARE)[::-1]
    heads = [(weight, bias) for _, weight, bias in l2_path(train, train_labels, classes, l2s.tolist())]
    l2_losses = [cross_entropy(validation @ weight.T + bias, labels) for weight, bias in heads]
    path = np.array([weight for weight, _ in heads])
    logger.info("λ path: %d points from %.1e to %.1e", len(l2s), l2s[0], l2s[-1])

    counts = np.unique(_log_spaced(1, steps).round().astype(int)).tolist()
    squared = _squared_loss_l2s(train, np.eye(classes)[train_labels], rate, counts, l2s)
    descent, stops = descent_path(train, train_labels, classes, rate, counts), []
    for (t, weight, bias), squared_l2 in zip(descent, squared, strict=True):
        theory, nearest = equivalent_l2(rate, t), nearest_l2(weight, l2s, path)
        val_loss = cross_entropy(validation @ weight.T + bias, labels)
        stops.append(Stop(t, theory, nearest.l2, nearest.distance, nearest.at_end, squared_l2, val_loss))
        logger.info("step %d  1/(2τt) %.1e  nearest λ %.1e  validation %.4f", t, theory, nearest.l2, val_loss)

    study = {"pictures": len(train), "width": train.shape[1], "classes": classes, "rate": rate}
    figures = study | _figures(stops, l2s, l2_losses)
    write_table(paths.STUDY / "early_stopping.csv", Stop._fields, stops)
    write_json(paths.STUDY / "early_stopping.json", figures)
    _draw(stops, l2s, l2_losses, figures)
    if figures["best_stop"]["steps"] == steps:
        logger.info("the validation loss still falls at the last step: more --steps would show where it turns")
    logger.info(
        "nearest λ / (1/(2τt)): median %.2f, within a factor of %g over %.1f decades of t; see %s/early_stopping.*",
        figures["median_ratio"], CLOSE, figures["close"]["decades"], paths.STUDY,
    )  # fmt: skip


def _log_spaced(low: float, high: float) -> Array:
    return np.geomspace(low, high, 1 + int(np.ceil(POINTS_A_DECADE * np.log10(high / low))))


def _squared_loss_l2s(
    features: NDArray[np.floating], one_hot: Array, rate: float, counts: Sequence[int], l2s: Array
) -> list[float]:
    """Return the nearest λ on ``1/n ‖XW − Y‖²`` by the exact filters, at the same τt.

    That loss is up to four times as curved as Böhning's bound on the softmax's: an eighth of the step, eight times as
    many.
    """
    _, centred, eigenvalues, axes = principal_axes(features)
    present = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    eigenvalues, axes = eigenvalues[present], axes[:, present]
    # The least-squares coefficient along an eigenvector, its norm over the classes.
    coefficients = np.linalg.norm(axes.T @ (centred.T @ one_hot / len(centred)), axis=1) / eigenvalues
    path = np.array([ridge_filter(eigenvalues, l2) * coefficients for l2 in l2s])
    filtered = (descent_filter(eigenvalues, rate / 8, 8 * t) * coefficients for t in counts)
    nearest = (nearest_l2(weight, l2s, path) for weight in filtered)
    return [math.nan if point.at_end else point.l2 for point in nearest]


def _figures(stops: Sequence[Stop], l2s: Array, l2_losses: Sequence[float]) -> dict[str, Any]:
    """Return how near the theory is, over which steps, and where either validation loss is lowest."""
    ratio_at = {stop.steps: stop.nearest_l2 / stop.theory_l2 for stop in stops if not stop.at_end}
    ratios = list(ratio_at.values())
    runs = [list(run) for close, run in groupby(ratio_at, lambda t: 1 / CLOSE <= ratio_at[t] <= CLOSE) if close]
    first, last = max(((run[0], run[-1]) for run in runs), key=lambda ends: ends[1] / ends[0], default=(0, 0))
    decades = _rounded(np.log10(last / first)) if last else 0.0
    best, best_l2 = min(stops, key=lambda stop: stop.val_loss), int(np.argmin(l2_losses))
    return {
        "median_ratio": _rounded(np.median(ratios)) if ratios else None,
        "smallest_ratio": _rounded(min(ratios)) if ratios else None,
        "largest_ratio": _rounded(max(ratios)) if ratios else None,
        "close": {"factor": CLOSE, "first_step": first, "last_step": last, "decades": decades},
        "largest_distance": _rounded(max(stop.distance for stop in stops)),
        "best_stop": {
            "steps": best.steps,
            "theory_l2": _rounded(best.theory_l2),
            "nearest_l2": _rounded(best.nearest_l2),
            "val_loss": _rounded(best.val_loss),
        },
        "best_l2": {"l2": _rounded(l2s[best_l2]), "val_loss": _rounded(l2_losses[best_l2])},
    }


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def _draw(stops: Sequence[Stop], l2s: Array, l2_losses: Sequence[float], figures: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415  (see drawing)

    figure, left, right = drawing.two_panels()
    steps, theory = [stop.steps for stop in stops], np.array([stop.theory_l2 for stop in stops])
    squared = [stop.squared_loss_l2 for stop in stops]
    measured = [math.nan if stop.at_end else stop.nearest_l2 for stop in stops]

    left.fill_between(steps, theory / CLOSE, theory * CLOSE, color="#e4e4e4", label=f"within a factor of {CLOSE:g}")
    left.loglog(steps, theory, color=drawing.GREY, linestyle="--", label="theory, λ = 1/(2τt)")
    left.loglog(steps, squared, color=drawing.GREEN, linewidth=1.2, label="squared loss, exact")
    left.loglog(steps, measured, "o", color=drawing.BLUE, markersize=3.5, label="softmax, measured")
    left.set(title="The λ whose solution is nearest", xlabel="steps of gradient descent, t", ylabel="λ")
    left.legend(frameon=False)

    right.semilogx(theory, [stop.val_loss for stop in stops], color=drawing.BLUE, label="gradient descent, at 1/(2τt)")
    right.semilogx(l2s, l2_losses, color=drawing.ORANGE, linestyle="-.", label="penalty λ‖W‖²")
    best, best_l2 = figures["best_stop"], figures["best_l2"]
    right.plot(best["theory_l2"], best["val_loss"], color=drawing.BLUE, marker="o")
    right.plot(best_l2["l2"], best_l2["val_loss"], color=drawing.ORANGE, marker="s")
    right.invert_xaxis()
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    right.set(title="Cross-entropy on validation", xlabel="λ, or 1/(2τt)   (training longer →)", ylabel="nats an image")
    right.legend(frameon=False)
    drawing.save(figure, paths.STUDY / "early_stopping.svg")
