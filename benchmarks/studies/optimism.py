"""Measure what choosing among many tries costs, and whether `headstart tune` estimates it rightly.

    python -m benchmarks.studies.optimism

Repeated splits of scikit-learn's 1,797 digits: 300 images to train on, 100 to choose by, the other 1,397 are the truth.
In each split 30 small networks of random learning rate, λ, width and seed are trained for 10 epochs, and the epoch with
the lowest validation loss of all of them is chosen, as tune does. What it has on validation is compared with what it
has on the truth, and so is the estimate that tune prints (``tuning/optimism.py``).
"""

import argparse
import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from headstart.targets.classes import Classes
from headstart.tuning.observer import SCORES, image_scores
from headstart.tuning.optimism import corrected

TRAIN, VALIDATION, CLASSES = 300, 100, 10
DIGITS = Classes([str(i) for i in range(CLASSES)])
LOSS, ERROR = SCORES.index("loss"), SCORES.index("error")


def scores_of_tries(split: int, tries: int, epochs: int) -> tuple[NDArray[np.float32], ...]:
    """Train the tries of a split.

    Returns:
        The validation labels, then ``SCORES`` of each image after each epoch of each try, on validation and on the
        truth: float32 (tries · epochs, 3, images).
    """
    images, labels = load_digits(return_X_y=True)
    rest, truth, rest_labels, truth_labels = train_test_split(
        images / 16, labels, train_size=TRAIN + VALIDATION, stratify=labels, random_state=split
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, train_size=TRAIN, stratify=rest_labels, random_state=split
    )
    generator = np.random.default_rng(split)
    found: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for _ in range(tries):
        network = MLPClassifier(
            hidden_layer_sizes=(int(generator.choice([16, 32, 64])),),
            learning_rate_init=float(10 ** generator.uniform(-3, -1.5)),
            alpha=float(10 ** generator.uniform(-4, 0)),
            batch_size=32,
            random_state=int(generator.integers(2**31)),
        )
        for _ in range(epochs):
            network.partial_fit(train, train_labels, classes=np.arange(CLASSES))
            for each, (x, y) in zip(found, ((validation, validation_labels), (truth, truth_labels)), strict=True):
                logits = np.log(np.maximum(network.predict_proba(x), 1e-30)).astype(np.float32)
                each.append(image_scores(DIGITS, logits, y))
    return validation_labels, *(np.stack(each) for each in found)


def main() -> None:
    """Print each split, then the mean errors of both estimates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--tries", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, list[tuple[float, float, float, bool]]] = {"error": [], "loss": []}
    for split in range(args.splits):
        labels, validation, truth = scores_of_tries(split, args.tries, args.epochs)
        costs = validation[:, LOSS]
        chosen = int(costs.mean(axis=1).argmin())
        for name, column in (("error", ERROR), ("loss", LOSS)):
            figures = validation[:, column]
            estimate = corrected(costs, figures, labels.astype(np.int64))
            real = float(truth[chosen, column].mean())
            low, high = estimate.interval or (estimate.value, estimate.value)
            rows[name].append((float(figures[chosen].mean()), estimate.value, real, low <= real <= high))
        print(
            f"split {split:2}", *(f"{name} {' '.join(f'{x:.4f}' for x in each[-1][:3])}" for name, each in rows.items())
        )
    print("\nmeans: on validation, corrected, the truth; then the first two minus the truth, ± 1 standard error")
    for name, each in rows.items():
        seen, estimated, real, held = np.array(each, np.float64).T
        errors = " and ".join(
            f"{np.mean(x - real):+.4f} ± {np.std(x - real, ddof=1) / len(real) ** 0.5:.4f}" for x in (seen, estimated)
        )
        means = " ".join(f"{np.mean(x):.4f}" for x in (seen, estimated, real))
        print(f"{name:5}  {means}  {errors}; the interval held the truth in {held.mean():.0%}")


if __name__ == "__main__":
    main()
