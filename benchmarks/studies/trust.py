"""Measure whether the intervals, tests and sets of the evaluation hold what they promise.

    python -m benchmarks.studies.trust

500 simulated test sets a row, of 10 classes of which the most frequent is four times as frequent as the rarest. The
truth is the figure on 400,000 images. A model's logits are the label's signal, noise that all models share (an image
is an easy or a hard one), and noise of its own; models that differ only in the latter are equally good, so whatever
tells them apart is a false alarm.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from headstart.evaluation.bootstrap import assign_units, fraction_interval, interval, replicate_figures
from headstart.evaluation.significance import compare, correct_p_values
from headstart.evaluation.trust import conformal
from headstart.targets.class_figures import contributions, figures
from headstart.targets.classes import Classes
from headstart.targets.target import Figures

CLASSES, TOP_K, MODELS = 10, 3, 7
SHARES = np.linspace(4, 1, CLASSES) / np.linspace(4, 1, CLASSES).sum()
SHARE_NAMES = ("accuracy", f"top_{TOP_K}_accuracy")
TARGET = Classes([str(i) for i in range(CLASSES)], TOP_K)
Drawn = tuple[list[NDArray[np.float32]], NDArray[np.int64]]


def drawn(images: int, signal: float, generator: np.random.Generator, models: int = 1) -> Drawn:
    """Draw labels, and each model's logits (images, classes)."""
    labels = generator.choice(CLASSES, images, p=SHARES)
    shared = signal * np.eye(CLASSES)[labels] + generator.normal(size=(images, CLASSES))
    own = generator.normal(size=(models, images, CLASSES))
    return [(shared + each).astype(np.float32) for each in own], labels


def redrawn(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Figures:
    """Return a model's figures on redrawn test sets."""
    units = assign_units(labels, None)
    return replicate_figures(TARGET.tally(logits, labels, units.of_image, {}), units)


def coverage(images: int, signal: float, draws: int) -> None:
    """Print how often each figure's 95 % interval holds the truth."""
    generator = np.random.default_rng(0)
    (logits,), labels = drawn(400_000, signal, generator)
    truth = figures(contributions(logits, labels, TOP_K).sum(axis=0)[None], TOP_K)
    hits: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(draws):
        (logits,), labels = drawn(images, signal, generator)
        found = redrawn(logits, labels)
        for name, values in found.items():
            ends = fraction_interval(values, images) if name in SHARE_NAMES else interval(values)
            hits[name].append(ends is not None and ends[0] <= truth[name][0] <= ends[1])
    row = "  ".join(f"{name} {np.mean(each):.3f}" for name, each in hits.items())
    print(f"95 % intervals, {images} images, accuracy {truth['accuracy'][0]:.3f}: {row}")


def false_alarms(images: int, signal: float, draws: int) -> None:
    """Print how often models that are equally good are told apart at 5 %."""
    generator = np.random.default_rng(1)
    single: dict[str, list[bool]] = {"mcnemar": [], "bootstrap": []}
    any_of_six: dict[str, list[bool]] = {"mcnemar": [], "bootstrap": []}
    for _ in range(draws):
        logits, labels = drawn(images, signal, generator, MODELS)
        models = {str(i): each for i, each in enumerate(logits)}
        replicates = {name: redrawn(each, labels) for name, each in models.items()}
        right = {name: each.argmax(1) == labels for name, each in models.items()}
        points = {name: {"accuracy": float(each.mean()), "nll": 0.0} for name, each in right.items()}
        others = list(models)[1:]
        found = correct_p_values(
            [compare(("0", name), TARGET, right, points, replicates, grouped=False) for name in others]
        )
        for test, alarms in single.items():
            alarms.append(found[0][f"{test}_p"] < 0.05)
            any_of_six[test].append(any(each[f"{test}_corrected_p"] < 0.05 for each in found))
    shares = ((test, np.mean(alarms), np.mean(any_of_six[test])) for test, alarms in single.items())
    row = "  ".join(f"{test}: one {one:.3f}, any of 6 by Holm {any_of:.3f}" for test, one, any_of in shares)
    print(f"false alarms at 0.05, {images} images: {row}")


def conformal_coverage(images: int, signal: float, draws: int) -> None:
    """Print the mean coverage and size of sets whose thresholds come from as many validation images."""
    generator = np.random.default_rng(2)
    rows: list[list[tuple[float, float]]] = []
    for _ in range(draws):
        (validation,), validation_labels = drawn(images, signal, generator)
        (test,), labels = drawn(1000, signal, generator)
        by_split = {"validation": validation_labels, "test": labels}
        found = conformal({"validation": validation, "test": test}, by_split, TARGET)
        rows.append([(each["coverage"], each["mean_size"]) for each in found])
    means = np.mean(rows, axis=0)
    kinds = [f"{each['method']} {each['level']}" for each in found]
    row = "  ".join(
        f"{kind}: {mean:.3f} in {size:.2f} classes" for kind, (mean, size) in zip(kinds, means, strict=True)
    )
    print(f"conformal sets, {images} validation images: {row}")


def main() -> None:
    """Print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500, help="simulated test sets a row (default: %(default)s)")
    draws = parser.parse_args().draws
    for images, signal in ((260, 4.0), (260, 6.0), (2000, 4.0)):
        coverage(images, signal, draws)
    for images in (260, 2000):
        false_alarms(images, 4.0, draws)
    for images in (100, 260, 2000):
        conformal_coverage(images, 4.0, draws)


if __name__ == "__main__":
    main()
