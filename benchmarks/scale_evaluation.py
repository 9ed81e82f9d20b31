"""Measure the time and the memory of each part of evaluate by the number of test images, without pixels.

    python -m benchmarks.scale_evaluation [--counts 10000 100000 1000000 10000000] [--classes 10]

The predictions of three models are invented and lie on disk as evaluate has them, with a tenth as many of validation;
so are the manifest's rows, with two columns of metadata. Each part runs in one process after the other, of which the
peak of the resident memory is read, less what the process had before the first: labels and distances, 18 bytes an
image, and the libraries. What a model's logits take on disk is 4 bytes for each image and class.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import ROOT
from headstart.core.blocks import Rows, row_blocks, write_rows
from headstart.core.text import text_table
from headstart.data.manifest import MANIFEST_COLUMNS

MODELS = ("probe", "knn", "finetune")
TOP_K, REFERENCES, WIDTH = 5, 1000, 512
Figures = dict[str, dict[str, float]]


def evaluate_invented(count: int, classes: int) -> Figures:
    """Return by part its ``seconds``, and the ``bytes`` that the process had at most more than at its start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scale_evaluation", "--counts", str(count), "--in", folder]
        done = subprocess.run([*command, "--classes", str(classes)], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def _invent_labels(count: int, classes: int) -> Any:
    return np.random.default_rng(count).integers(0, classes, count)


def _invent_logits(path: Path, count: int, classes: int, seed: int) -> Rows:
    generator, labels = np.random.default_rng(seed), _invent_labels(count, classes)

    def blocks() -> Iterator[Any]:
        for rows in row_blocks((count, classes)):
            logits = generator.standard_normal((rows.stop - rows.start, classes), np.float32)
            logits[np.arange(len(logits)), labels[rows]] += 3
            yield logits

    return write_rows(path, blocks(), (count, classes))


def _invent_rows(labels: Any, names: list[str]) -> Iterator[dict[str, str]]:
    unused = dict.fromkeys(MANIFEST_COLUMNS, "")
    for i, label in enumerate(labels):
        name = names[label]
        row = {**unused, "id": f"{i:016x}", "source": f"test/{name}/{i:08d}.jpg", "label": name}
        yield row | {"site": f"site{i % 7}", "age": str(i * 7919 % 100_003)}


def _measure_parts(count: int, classes: int) -> Figures:
    """Run each part in the working directory."""
    from scipy.special import softmax  # noqa: PLC0415

    from headstart.evaluation.bootstrap import assign_units  # noqa: PLC0415
    from headstart.evaluation.leaderboard import compute_leaderboard  # noqa: PLC0415
    from headstart.evaluation.predictions import ModelPredictions, write_predictions  # noqa: PLC0415
    from headstart.evaluation.slices import compute_slices, read_metadata  # noqa: PLC0415
    from headstart.evaluation.trust import write_trust  # noqa: PLC0415
    from headstart.report.confusion import count_predictions  # noqa: PLC0415
    from headstart.report.inputs import read_predictions  # noqa: PLC0415
    from headstart.targets.classes import Classes  # noqa: PLC0415

    counts, names = {"validation": max(1000, count // 10), "test": count}, [f"class{i}" for i in range(classes)]
    generator = np.random.default_rng(0)
    reference = generator.random((REFERENCES, WIDTH), np.float32)
    models, target = {}, Classes(names, TOP_K)
    for i, name in enumerate(MODELS):
        logits = {split: _invent_logits(Path(f"{name}-{split}.npy"), n, classes, i) for split, n in counts.items()}
        distances = {split: np.zeros(0, np.float32) for split in counts}
        if name != "knn":
            distances = {split: generator.random(n, np.float32) for split, n in counts.items()}
        models[name] = ModelPredictions(logits, 0.5, 1.0, 1.0, distances, reference, target=target)
    labels = {split: _invent_labels(n, classes) for split, n in counts.items()}
    test_labels, probe = labels["test"], models["probe"].outputs["test"]
    units = assign_units(test_labels, None)
    fitted = {name: target.fit(model.outputs["validation"], labels["validation"]) for name, model in models.items()}

    def slices() -> None:
        correct = target.scores(models["finetune"].outputs["test"], test_labels, fitted["finetune"])
        columns = read_metadata(_invent_rows(test_labels, names))
        compute_slices(columns, correct, units)

    def leaderboard() -> None:
        compute_leaderboard(models, test_labels, target, fitted, units)

    def label_errors() -> None:
        Classes(names).find_errors(test_labels, (softmax(probe[rows], axis=1) for rows in row_blocks(probe.shape)))

    parts: dict[str, Callable[[], object]] = {
        "predictions.csv": lambda: write_predictions(target, labels, models, fitted, _invent_rows(test_labels, names)),
        "trust": lambda: write_trust(models, labels, fitted, units),
        "slices": slices,
        "label errors": label_errors,
        "leaderboard": leaderboard,
        "report's mistakes": lambda: count_predictions(target, partial(read_predictions, target)),
    }
    figures, start = {}, _resident("VmRSS")
    for part, run in parts.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.perf_counter()
        run()
        figures[part] = {"seconds": time.perf_counter() - began, "bytes": _resident("VmHWM") - start}
    return figures


def _resident(line: str) -> int:
    """Return a line of this process's status, in bytes."""
    (size,) = (each.split()[1] for each in Path("/proc/self/status").read_text().splitlines() if line in each)
    return 1024 * int(size)


def main() -> None:
    """Print a table for each number of images, or with ``--in`` the figures of one as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], help="%(default)s")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        with chdir(args.folder):
            print(json.dumps(_measure_parts(args.counts[0], args.classes)))
        return
    for count in args.counts:
        figures = evaluate_invented(count, args.classes)
        rows = [[f"{count:,} x {args.classes}", "s", "images/s", "MB", "bytes an image"]]
        for part, each in figures.items():
            seconds, size = each["seconds"], each["bytes"]
            rows.append([part, f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{size / 1e6:.0f}", f"{size / count:.0f}"])
        print(text_table(rows), flush=True)


if __name__ == "__main__":
    main()
