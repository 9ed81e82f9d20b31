"""Measure the probe's solver against scikit-learn's LogisticRegression (tol=1e-8) or Ridge on invented features.

    python benchmarks/studies/linear_path.py
    python benchmarks/studies/linear_path.py --classes 100 --pictures 20000 --only-ours --tolerance 1e-6 --gap
    python benchmarks/studies/linear_path.py --width 2048 --classes 1000 --only-ours --tolerance 1e-6
    python benchmarks/studies/linear_path.py --pictures 1280000 --width 2048 --classes 1000 --only-ours --device cuda
    python benchmarks/studies/linear_path.py --width 2048 --classes 1 --ridge
    python benchmarks/studies/linear_path.py --width 2048 --classes 1 --ridge --only-ours

Both go from the largest λ to the smallest, each from the solution before it, and both get the same float64 features;
with --only-ours they are float32, as cached features are. --solver takes another one of scikit-learn's. A line a λ: how
often ours looked at all features (products with the Hessian, values with gradients, weighted variances), the objectives
(loss + λ‖W‖², in float64), their relative difference (ours - theirs), and the seconds; a star marks where scikit-learn
warned that it had not converged. --gap then solves each λ to 1e-12 and prints how far above its minimum ours was,
relative to it. With --ridge there are numbers instead of classes: squared errors, in closed form with generalised
cross-validation; the first λ's seconds have the decomposition. The peak is the whole process's memory, the features
included; on a GPU the GPU's.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of
from numpy.typing import DTypeLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from headstart.probe.logistic import TOLERANCE, LinearSolver, RowSums
from headstart.targets.classes import Classes
from headstart.targets.number import Numbers
from headstart.targets.target import Target

PATH = [1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6]  # params.yaml's
BLOCK = 5000


def main() -> None:
    """Invent the features, solve the path by both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10, help="at least 3; with --ridge numbers, 1 or more")
    parser.add_argument("--ridge", action="store_true")
    parser.add_argument("--l2", type=float, nargs="+", default=PATH)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--solver", choices=["lbfgs", "newton-cholesky", "newton-cg"], default="lbfgs")
    parser.add_argument("--gap", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: with --only-ours")
    args = parser.parse_args()
    dtype = np.float32 if args.only_ours else np.float64
    features, labels, target = invented(args.pictures, args.width, args.classes, dtype, args.device, numbers=args.ridge)
    l2s = sorted(args.l2, reverse=True)
    theirs = None
    if not args.only_ours:
        theirs = ridges(features, labels, l2s) if args.ridge else scikit_learns(features, labels, l2s, args.solver)
    rows, looks, values = RowSums(features, labels, target), Counter[str](), []

    def counted(name: str, *arrays: Any) -> list[Any]:
        looks[name] += 1
        return rows(name, *arrays)

    totals = [0.0, 0.0]
    began = time.perf_counter()
    solver = LinearSolver(counted, target)
    for l2, weight, bias in solver.path(args.l2, tolerance=args.tolerance):
        seconds = time.perf_counter() - began
        value = objective(target, (weight, bias), features, labels, l2)
        values.append(value)
        line = f"λ {l2:.0e}  ours {value:.10f}  {seconds:7.2f} s  {looks.total():4} looks"
        looks.clear()
        totals[0] += seconds
        if theirs:
            their_weight, their_bias, their_seconds, iterations, mark = next(theirs)
            their_value = objective(target, (their_weight, their_bias), features, labels, l2)
            line += f"  scikit-learn {their_value:.10f}  {their_seconds:7.2f} s  {iterations:5} iterations{mark:1}"
            line += f"  difference {value / their_value - 1:+.1e}"
            totals[1] += their_seconds
        print(line, flush=True)
        began = time.perf_counter()

    figures: dict[str, float] = {
        "pictures": args.pictures,
        "width": args.width,
        "classes": args.classes,
        "cores": os.cpu_count() or 0,
    }
    figures["seconds"] = round(totals[0], 1)
    if theirs:
        figures |= {"scikit_learn_seconds": round(totals[1], 1), "ratio": round(totals[1] / totals[0], 1)}
    if args.gap:
        fine = solver.path(args.l2, tolerance=1e-12)
        lowest = [objective(target, (weight, bias), features, labels, l2) for l2, weight, bias in fine]
        figures["largest_gap"] = max(value / low - 1 for value, low in zip(values, lowest, strict=True))
    print(json.dumps(figures | {"peak_mb": peak_mb(args.device)}))


def invented(
    count: int, width: int, classes: int, dtype: DTypeLike, device: str, *, numbers: bool
) -> tuple[Any, Any, Target]:
    """Draw features as after a ReLU, whose spectrum falls by a power law, and what a noisy linear teacher says."""
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(width, width)) / np.arange(1, width + 1)[:, None]
    mix *= 0.5 / np.sqrt((mix**2).sum(axis=0).mean())
    teacher = generator.normal(size=(width, classes))
    features = np.empty((count, width), dtype)
    labels: NDArray[Any] = np.empty((count, classes), np.float32) if numbers else np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        features[block] = np.maximum(generator.normal(size=(len(labels[block]), width)) @ mix, 0)
        if start == 0:
            mean = features[block].mean(axis=0)
            teacher *= 3 / ((features[block] - mean) @ teacher).std()
        logits = (features[block] - mean) @ teacher
        noisy = logits + generator.gumbel(size=logits.shape)
        labels[block] = noisy if numbers else noisy.argmax(axis=1)
    names = [str(i) for i in range(classes)]
    target: Target = Classes(names)
    if numbers:
        target = Numbers(names, [""] * classes, [0.0] * classes, [1.0] * classes).trained(labels)
    if device == "cpu":
        return features, labels, target
    import torch  # noqa: PLC0415  (slow, and only a GPU needs it)

    torch.set_float32_matmul_precision("high")
    return torch.as_tensor(features, device=device), torch.as_tensor(labels, device=device), target


def ridges(
    features: NDArray[np.float64], values: NDArray[np.float32], l2s: list[float]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], float, int, str]]:
    """Yield what ``scikit_learns`` does, of Ridge on standardised numbers."""
    standard = (values - values.mean(axis=0, dtype=np.float64)) / values.std(axis=0, dtype=np.float64)
    for l2 in l2s:
        began = time.perf_counter()
        model = Ridge(alpha=l2 * len(values)).fit(features, standard)
        seconds = time.perf_counter() - began
        yield model.coef_.reshape(-1, features.shape[1]), np.ravel(model.intercept_), seconds, 1, ""


def scikit_learns(
    features: NDArray[np.float64], labels: NDArray[np.int64], l2s: list[float], solver: str
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], float, int, str]]:
    """Yield, for each λ, W, b, seconds, iterations and a star where it warned."""
    model = LogisticRegression(solver=solver, tol=1e-8, max_iter=100_000, warm_start=True)
    for l2 in l2s:
        model.set_params(C=1 / (2 * l2 * len(labels)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            began = time.perf_counter()
            model.fit(features, labels)
            seconds = time.perf_counter() - began
        mark = "*" if any(issubclass(warning.category, ConvergenceWarning) for warning in caught) else ""
        yield model.coef_, model.intercept_, seconds, int(model.n_iter_[0]), mark


def objective(
    target: Target, head: tuple[NDArray[np.float64], NDArray[np.float64]], features: Any, labels: Any, l2: float
) -> float:
    """Return loss + λ‖W‖², computed in float64 for some images at a time."""
    xp, total = array_namespace(features), 0.0
    like = {"dtype": xp.float64, "device": device_of(features)}
    weight, bias = (xp.asarray(each, **like) for each in head)
    for start in range(0, len(labels), BLOCK):
        outputs = xp.astype(features[start : start + BLOCK], xp.float64) @ weight.T + bias
        total += float(xp.sum(target.losses(outputs, labels[start : start + BLOCK])))
    return total / len(labels) + l2 * float(xp.sum(weight**2))


def peak_mb(device: str) -> int:
    """Return the most memory that this process had (Linux counts it in KiB, macOS in bytes), or had on its GPU."""
    if device != "cpu":
        import torch  # noqa: PLC0415  (slow, and only a GPU needs it)

        return round(torch.cuda.max_memory_allocated() / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


if __name__ == "__main__":
    main()
