"""What choosing costs: how far the best of many tries looks better on validation than it is.

The bootstrap bias correction of Tsamardinos, Greasidou and Borboudakis 2018 ("Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation", arXiv 1708.07180), for one validation split: the choice is
made again on each redrawn set of validation images, and what it chose is measured on the images that were not drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.evaluation.bootstrap import Groups, assign_units, interval
from headstart.targets.target import Target, Values
from headstart.training.figures import Monitor


class Corrected(NamedTuple):
    """The mean of a figure over new images, of what is chosen in this way, and its 95 % interval (None: no spread)."""

    value: float
    interval: list[float] | None


def corrected(
    costs: NDArray[np.float32],
    figures: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Groups | None = None,
) -> Corrected:
    """Estimate what the configuration with the least mean cost has of a figure on new images.

    A little pessimistic, since each choice is made by the 63 % of the images that a redrawn set contains.

    Args:
        costs: what each validation image adds to what is minimised, (configurations, n).
        figures: what each adds to the figure, likewise.
        labels: of the images, (n,).
        groups: as for ``bootstrap.assign_units``.
    """
    measured, units = [], assign_units(labels, groups)
    for drawn in units.draws():
        times = drawn[:, units.of_image]
        chosen = (times @ costs.T).argmin(axis=1)
        left_out = times == 0
        counts = left_out.sum(axis=1)
        some = counts > 0  # of very few images all may be drawn
        measured.append(((left_out * figures[chosen]).sum(axis=1, dtype=np.float64)[some]) / counts[some])
    each = np.concatenate(measured)
    return Corrected(float(each.mean()), interval(each))


def corrected_measure(
    outputs: Sequence[NDArray[np.float32]],
    values: Values,
    target: Target,
    monitor: Monitor,
    groups: Groups | None = None,
) -> Corrected | None:
    """Estimate what the configuration with the best monitored figure has of the first measure on new images.

    Return None where that is undefined, as a measure of labels that no image has.

    ``outputs``, (n, outputs) each, are the configurations'; ``values`` the images'. Thresholds and temperatures are
    those that were fitted to all images.
    """
    units, name = assign_units(np.zeros(len(values), np.int64), groups), monitor.name.removeprefix("val_")
    tallies = [target.tally(each, values, units.of_image, target.fit(each, values)) for each in outputs]
    sign, measured = -1 if monitor.higher_is_better else 1, []
    losses = np.stack([np.bincount(units.of_image, target.losses(each, values)) for each in outputs])
    for drawn in units.draws():
        left_out = (drawn == 0).astype(np.float32)
        monitored = drawn @ losses.T if name == "loss" else np.stack([t.figures(drawn)[name] for t in tallies], axis=1)
        chosen = np.where(np.isnan(monitored), np.inf, sign * monitored).argmin(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # of very few images all may be drawn
            new = np.stack([tally.figures(left_out)[next(iter(target.measures))] for tally in tallies])
        measured.append(new[chosen, np.arange(len(drawn))])
    each = np.concatenate(measured)
    each = each[~np.isnan(each)]
    return Corrected(float(each.mean()), interval(each)) if len(each) else None
