"""Whether one classifier is more accurate than another on the same test images, and whether it is worth its cost."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from headstart.core.blocks import Matrix
from headstart.evaluation.bootstrap import LEVEL, Groups, assign_units, interval, replicate_figures
from headstart.targets.class_figures import sum_by_unit
from headstart.targets.likelihood import fit_temperature, negative_log_likelihood
from headstart.targets.target import Figures


def compare(
    names: tuple[str, str],
    correct: Mapping[str, NDArray[np.bool_]],
    points: Mapping[str, Mapping[str, Any]],
    replicates: Mapping[str, Figures],
    *,
    grouped: bool,
) -> dict[str, Any]:
    """Compare two classifiers on the same images, plain JSON values; a positive difference favours the first.

    By the names of both, ``correct`` has bool (n,), ``points`` the ``accuracy`` and ``nll``, and ``replicates`` the
    figures on the same redrawn test sets. Where images come in groups, McNemar's test is left out, since it assumes
    independent images.

    Returns:
        ``model`` and ``against``; ``accuracy_difference`` and ``nll_difference`` (how much lower the first's is)
        with their intervals; ``only_model_right`` and ``only_other_right``, the images that only one classifies
        correctly; ``mcnemar_p``, exact and two-sided (McNemar 1947), or None; ``bootstrap_p``, twice the fraction of
        redrawn sets on which the difference in accuracy is zero or has the other sign.
    """
    model, against = names
    only, only_other = (int((correct[a] & ~correct[b]).sum()) for a, b in (names, names[::-1]))
    accuracy = replicates[model]["accuracy"] - replicates[against]["accuracy"]
    nll = replicates[against]["nll"] - replicates[model]["nll"]
    discordant = only + only_other
    reversed_sets = min((accuracy <= 0).sum(), (accuracy >= 0).sum())
    return {
        "model": model,
        "against": against,
        "accuracy_difference": round(points[model]["accuracy"] - points[against]["accuracy"], 6),
        "accuracy_interval": interval(accuracy) or [0.0, 0.0],
        "nll_difference": round(points[against]["nll"] - points[model]["nll"], 6),
        "nll_interval": interval(nll) or [0.0, 0.0],
        "only_model_right": only,
        "only_other_right": only_other,
        "mcnemar_p": None if grouped else float(binomtest(only, discordant).pvalue) if discordant else 1.0,
        "bootstrap_p": float(min(1.0, 2 * (reversed_sets + 1) / (len(accuracy) + 1))),
    }


def correct_p_values(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add ``<test>_corrected_p`` to comparisons: their p-values, corrected for the number of comparisons."""
    corrected = [dict(comparison) for comparison in comparisons]
    for test in ("mcnemar", "bootstrap"):
        p_values = [comparison[f"{test}_p"] for comparison in comparisons]
        by_holm = holm(p_values) if None not in p_values else p_values
        for comparison, p in zip(corrected, by_holm, strict=True):
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
    logits: Matrix, other: Matrix, labels: NDArray[np.int64], groups: Groups | None
) -> tuple[float, list[float]]:
    """Return how much lower the negative log-likelihood of ``logits`` is than that of ``other``, and its interval.

    Each is taken at the temperature that fits these images best, so that what counts is how well the classes are told
    apart. Both are float (n, classes) of the same images; the interval is of a paired bootstrap, ``groups`` as in
    ``bootstrap.assign_units``.
    """
    units, refined, replicates = assign_units(labels, groups), [], []
    for each in (logits, other):
        temperature = fit_temperature(each, labels)
        sums = sum_by_unit(each, labels, 1, units.of_image, len(units.stratum), temperature=temperature)
        replicates.append(replicate_figures(sums, units, 1)["nll"])
        refined.append(negative_log_likelihood(each, labels, 1 / temperature))
    difference = round(refined[1] - refined[0], 6)
    return difference, interval(replicates[1] - replicates[0]) or [difference, difference]


def verdict(comparison: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], images: int) -> str:
    """Return a sentence on whether a model is worth its cost against another.

    It is worth it where the whole interval of the difference in accuracy is above zero, and not worth it where the
    interval is below. Where it contains zero neither is shown; the sentence then has the number of test images that
    would show a difference as large as the observed one, from the variance of paired differences (Connor 1987).
    ``models`` has each model's ``accuracy`` and ``fit_seconds``; ``images`` is the number of test images.
    """
    model, against = comparison["model"], comparison["against"]
    low, high = (100 * end for end in comparison["accuracy_interval"])
    difference = comparison["accuracy_difference"]
    (right, seconds), (other_right, other_seconds) = (
        (f"{100 * models[name]['accuracy']:.1f} %", f"{models[name]['fit_seconds']:.1f} s") for name in (model, against)
    )
    figures = (
        f"{model} has {right} right and {against} {other_right}, a difference of {100 * difference:+.1f} points "
        f"({100 * LEVEL:.0f} % interval {low:+.1f} to {high:+.1f}), for {seconds} of fitting against {other_seconds}"
    )
    if low > 0:
        return f"Worth it here: {figures}."
    if high < 0:
        return f"Not worth it here: {figures}."
    if not difference:
        return f"Not shown to be worth it: {figures}."
    discordant = (comparison["only_model_right"] + comparison["only_other_right"]) / images
    needed = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2 * (discordant - difference**2) / difference**2
    return f"Not shown to be worth it: {figures}; about {max(needed, images + 1):,.0f} test images would tell."
