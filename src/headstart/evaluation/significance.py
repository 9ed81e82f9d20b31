"""Whether one model is better than another on the same test images, and whether it is worth its cost."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.core.blocks import Matrix
from headstart.evaluation.bootstrap import LEVEL, Groups, assign_units, interval, replicate_means, strata_of
from headstart.targets.target import Figures, Measure, Target, Values


def compare(
    names: tuple[str, str],
    target: Target,
    scores: Mapping[str, NDArray[Any]],
    points: Mapping[str, Mapping[str, Any]],
    replicates: Mapping[str, Figures],
    *,
    grouped: bool,
) -> dict[str, Any]:
    """Compare two models on the same images, plain JSON values; a positive difference favours the first.

    By the names of both, ``scores`` has ``Target.scores``, ``points`` the measures that are ``target.compared``, and
    ``replicates`` the figures on the same redrawn test sets.

    Returns:
        ``model`` and ``against``; ``<measure>_difference`` (how much better the first's is) and ``<measure>_interval``
        of each measure; where there is a right and a wrong, ``only_model_right`` and ``only_other_right``, the images
        that only one has right, and ``mcnemar_p`` of them, exact and two-sided (McNemar 1947), None where images come
        in groups, since it assumes independent images; ``bootstrap_p``, twice the fraction of redrawn sets on which the
        difference in the first measure is zero or has the other sign.
    """
    model, against = names
    compared: dict[str, Any] = {"model": model, "against": against}
    differences = {}
    for name in target.compared:
        better, worse = names if target.measures[name].higher_is_better else names[::-1]
        differences[name] = replicates[better][name] - replicates[worse][name]
        ends = points[better][name], points[worse][name]
        compared[f"{name}_difference"] = None if None in ends else round(ends[0] - ends[1], 6)
        compared[f"{name}_interval"] = interval(differences[name]) or [0.0, 0.0]
    if scores[model].dtype == bool:
        only, only_other = (int((scores[a] & ~scores[b]).sum()) for a, b in (names, names[::-1]))
        discordant = only + only_other
        p = None if grouped else float(binomtest(only, discordant).pvalue) if discordant else 1.0
        compared |= {"only_model_right": only, "only_other_right": only_other, "mcnemar_p": p}
    first = differences[target.compared[0]]
    first = first[~np.isnan(first)]
    reversed_sets = min((first <= 0).sum(), (first >= 0).sum())
    return compared | {"bootstrap_p": float(min(1.0, 2 * (reversed_sets + 1) / (len(first) + 1)))}


def correct_p_values(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add ``<test>_corrected_p`` to comparisons: their p-values, corrected for the number of comparisons."""
    corrected = [dict(comparison) for comparison in comparisons]
    for test in ("mcnemar", "bootstrap"):
        p_values = [comparison[f"{test}_p"] for comparison in comparisons if f"{test}_p" in comparison]
        by_holm = holm(p_values) if None not in p_values else p_values
        for comparison, p in zip(corrected if p_values else [], by_holm, strict=True):
            comparison[f"{test}_corrected_p"] = p
    return corrected


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method (1979), valid for dependent tests too."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    by_holm = np.empty(len(p_values))
    by_holm[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in by_holm]


def nll_difference(
    outputs: Matrix, others: Matrix, values: Values, groups: Groups | None, target: Target
) -> tuple[float, list[float]]:
    """Return how much lower the loss of ``outputs`` is than that of ``others``, and its interval.

    Each is taken at the temperatures that fit these images best, so that what counts is how well they are told apart.
    Both are float (n, outputs) of the same images; the interval is of a paired bootstrap, ``groups`` as in
    ``bootstrap.assign_units``.
    """
    units = assign_units(strata_of(target.strata(values), len(values)), groups)
    losses, replicates = [], []
    for each in (outputs, others):
        losses.append(target.refined_losses(each, values, target.fit(each, values)))
        replicates.append(replicate_means(losses[-1], units))
    difference = round(float(losses[1].mean() - losses[0].mean()), 6)
    return difference, interval(replicates[1] - replicates[0]) or [difference, difference]


def verdict(
    comparison: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], images: int, name: str, measure: Measure
) -> str:
    """Return a sentence on whether a model is worth its cost against another.

    It is worth it where the whole interval of the difference in a measure is on its side of zero, and not worth it
    where the interval is on the other side. Where it contains zero neither is shown; the sentence then has the number
    of test images that would show a difference as large as the observed one: of fractions from the variance of paired
    differences (Connor 1987), else from the interval, whose width falls with the root of the images. ``models`` has
    each model's figures, the measure by its ``name``, and ``fit_seconds``; ``images`` is the number of test images.
    """
    model, against = comparison["model"], comparison["against"]
    low, high = comparison[f"{name}_interval"]
    difference = comparison[f"{name}_difference"]
    seconds, other_seconds = (f"{models[each]['fit_seconds']:.1f} s" for each in (model, against))
    costs = f"for {seconds} of fitting against {other_seconds}"
    level = f"{100 * LEVEL:.0f} % interval"
    if difference is None:
        return f"Not shown to be worth it: {measure.name} is not defined on these test images; {costs}."
    if measure.as_percent:
        right, other_right = (f"{100 * models[each][name]:.1f} %" for each in (model, against))
        figures = (
            f"{model} has {right} right and {against} {other_right}, a difference of {100 * difference:+.1f} points "
            f"({level} {100 * low:+.1f} to {100 * high:+.1f}), {costs}"
        )
        discordant = (comparison.get("only_model_right", 0) + comparison.get("only_other_right", 0)) / images
        variance = discordant - difference**2
    else:
        has, other_has = (_with_unit(models[each][name], measure) for each in (model, against))
        figures = (
            f"{model} has {measure.name} {has} and {against} {other_has}, a gain of {difference:+.2g} "
            f"({level} {low:+.2g} to {high:+.2g}), {costs}"
        )
        variance = images * ((high - low) / 2 / _quantile()) ** 2
    if low > 0:
        return f"Worth it here: {figures}."
    if high < 0:
        return f"Not worth it here: {figures}."
    if not difference:
        return f"Not shown to be worth it: {figures}."
    needed = _quantile() ** 2 * variance / difference**2
    return f"Not shown to be worth it: {figures}; about {max(needed, images + 1):,.0f} test images would tell."


def _quantile() -> float:
    """Return how many standard deviations half an interval at ``LEVEL`` has."""
    return NormalDist().inv_cdf((1 + LEVEL) / 2)


def _with_unit(figure: float, measure: Measure) -> str:
    digits = f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
    return f"{digits} {measure.unit}".strip()
