"""Every target on invented and real sets: the probe, fine-tuning and the best classical head; and a long tail.

    python -m benchmarks.studies.targets sets --seeds 0 1 2
    python -m benchmarks.studies.targets sets --table FOLDER labels.csv labels sea,sunset,trees --seeds 0 1 2
    python -m benchmarks.studies.targets sets --table FOLDER labels.csv grade rbc --bins 4 --seeds 0 1 2
    python -m benchmarks.studies.targets tail --seeds 0 1 2

`sets` makes mosaics of four handwritten digits (ten labels), digits that are turned (the angle in degrees) and digits
as grades; with `--table` it takes a folder with a table instead: its file, target and columns; with `--bins` a column
of numbers becomes that many grades, between its quantiles. `tail` keeps of the
digits' training images a hundredth of the last class, geometric steps in between, and fine-tunes with each remedy.
A seed draws everything in fine-tuning; the splits are the same. Each row has the mean over seeds, and of the first seed
the 95 % interval on the test images.
"""

import argparse
import contextlib
import csv
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

from benchmarks.machine import ROOT
from headstart.config.loader import load_params
from headstart.core import paths
from headstart.core.io import read_json
from headstart.core.text import text_table
from headstart.stages import evaluate, features, finetune, prepare, probe
from headstart.targets.kinds import make_target

SIDE = 64
TAIL = 100
"""How many times more training images the first class has than the last."""
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "sampling: balanced": {"sampling": "balanced"},
    "sampling: sqrt": {"sampling": "sqrt"},
    "class_weights: balanced": {"class_weights": "balanced"},
    "logit_adjustment: 1": {"logit_adjustment": 1.0},
}
Rows = Iterator[tuple[Image.Image, list[Any]]]


def digits() -> tuple[list[Image.Image], list[int]]:
    """Return scikit-learn's digits, 32 x 32 grey, and what they are."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC) for each in pixels], data.target.tolist()


def mosaics() -> tuple[str, list[str], Rows]:
    """Return 1,500 images of four digits each, with ten labels: which digits are there."""
    images, labels = digits()
    generator = np.random.default_rng(0)

    def rows() -> Rows:
        for _ in range(1500):
            four = generator.integers(0, len(images), 4).tolist()
            mosaic = Image.new("L", (SIDE, SIDE))
            for place, i in enumerate(four):
                mosaic.paste(images[i], (32 * (place % 2), 32 * (place // 2)))
            there = {labels[i] for i in four}
            yield mosaic, [int(digit in there) for digit in range(10)]

    return "labels", [f"digit {i}" for i in range(10)], rows()


def turned() -> tuple[str, list[str], Rows]:
    """Return every digit turned by up to 60 degrees, with the angle."""
    images, _ = digits()
    generator = np.random.default_rng(0)

    def rows() -> Rows:
        for image in images:
            angle = float(np.round(generator.uniform(-60, 60), 1))
            yield image.resize((SIDE, SIDE)).rotate(angle, Image.Resampling.BICUBIC), [angle]

    return "number", ["angle [degrees]"], rows()


def graded() -> tuple[str, list[str], Rows]:
    """Return every digit, as a grade."""
    images, labels = digits()
    return "grade", ["label"], ((image, [label]) for image, label in zip(images, labels, strict=True))


SETS = {"mosaics of digits": mosaics, "turned digits": turned, "digits as grades": graded}


def write_set(folder: Path, columns: Sequence[str], rows: Rows) -> None:
    """Write images and their table."""
    folder.mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns])
        for i, (image, values) in enumerate(rows):
            image.save(folder / f"{i:05d}.png")
            writer.writerow([f"{i:05d}.png", *values])


def bin_column(table: Path, column: str, bins: int) -> None:
    """Replace the numbers of a column by grades from 0, of which each has about as many images as any other."""
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, lines = reader.fieldnames or [], list(reader)
    numbers = np.array([float(line[column]) for line in lines])
    edges = np.quantile(numbers, np.arange(1, bins) / bins)
    grades = np.searchsorted(edges, numbers, side="right").tolist()
    print(f"{column}: {np.bincount(grades).tolist()} images between {edges.tolist()}", flush=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**line, column: grade} for line, grade in zip(lines, grades, strict=True))


def run(folder: Path, seeds: Sequence[int], changes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the stages in a folder, fine-tuning once a seed; return each run's reports/evaluate.json."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["run"] |= {"tracking": "disabled", "cache": "cache"}
    for section, values in changes.items():
        content[section] |= values
    reports = []
    with contextlib.chdir(folder):
        for number, seed in enumerate(seeds):
            content["finetune"]["seed"] = seed
            YAML().dump(content, Path("params.yaml"))
            params = load_params(Path("params.yaml"))
            for stage in (prepare, features, probe) if number == 0 else ():
                stage.run(params)
            finetune.run(params)
            evaluate.run(params)
            reports.append(read_json(paths.report_of("evaluate")))
    return reports


def row_of(name: str, model: str, reports: Sequence[dict[str, Any]], measures: Sequence[str]) -> list[str]:
    """Return a line of the table: means over the seeds with the interval of the first."""
    cells = [name, model]
    for measure in measures:
        figures = [report["models"][model][measure] for report in reports]
        low, high = reports[0]["models"][model]["intervals"][measure] or (figures[0], figures[0])
        cells.append(f"{np.mean(figures):.3f} ({low:.3f} to {high:.3f})")
    return cells


def measure_sets(work: Path, seeds: Sequence[int], table: Sequence[str] | None, bins: int | None) -> None:
    """Print a table for each set."""
    kinds = {name: make() for name, make in SETS.items()} if table is None else {}
    for name, (kind, columns, rows) in kinds.items():
        write_set(work / name / "data/raw", columns, rows)
        report(work / name, seeds, kind, "csv:list.csv", columns)
    if table is not None:
        folder, file, kind, columns_text = table
        project = work / Path(folder).name
        shutil.copytree(folder, project / "data/raw")
        if bins:
            bin_column(project / "data/raw" / file, columns_text, bins)
        report(project, seeds, kind, f"csv:{file}", columns_text.split(","))


def report(project: Path, seeds: Sequence[int], kind: str, source: str, columns: Sequence[str]) -> None:
    """Run one set, and print its table."""
    settings = {"source": source, "target": kind, "target_columns": [*columns], "path": "data/raw"}
    changes: dict[str, dict[str, Any]] = {"prepare": settings}
    reports = run(project, seeds, changes)
    about = reports[0].get("target", {"kind": kind, "spec": {}})
    measures = [*make_target(kind, reports[0]["classes"], about.get("spec", {})).measures]
    classical = [model for model in reports[0]["models"] if not model.startswith(("probe", "finetune"))]
    primary, target = measures[0], make_target(kind, reports[0]["classes"], about.get("spec", {}))
    better = max if target.measures[primary].higher_is_better else min
    models = ["probe", "finetune"]
    models += [better(classical, key=lambda each: reports[0]["models"][each][primary])] if classical else []
    lines = [["set", "model", *measures]] + [row_of(project.name, model, reports, measures) for model in models]
    print(text_table(lines), reports[0]["verdict"], sep="\n", end="\n\n", flush=True)


def measure_tail(work: Path, seeds: Sequence[int]) -> None:
    """Print balanced accuracy and calibration on a balanced test set, trained on a long tail."""
    images, labels = digits()
    generator = np.random.default_rng(0)
    raw = work / "tail/data/raw"
    for label in range(10):
        members = generator.permutation([i for i, each in enumerate(labels) if each == label]).tolist()
        held, kept = members[:60], members[60:]
        kept = kept[: max(1, round(len(kept) * TAIL ** (-label / 9)))]
        for split, some in {"test": held[:40], "val": held[40:], "train": kept}.items():
            (raw / split / str(label)).mkdir(parents=True)
            for i in some:
                images[i].save(raw / split / str(label) / f"{i}.png")
    lines = [["remedy", "balanced accuracy", "NLL", "ECE"]]
    for name, settings in REMEDIES.items():
        source = {"source": "imagefolder", "path": "data/raw"}
        reports = run(work / "tail", seeds, {"prepare": source, "probe": {"heads": []}, "finetune": settings})
        lines.append([name, *row_of(name, "finetune", reports, ["balanced_accuracy", "nll", "ece"])[2:]])
        print("  ".join(lines[-1]), flush=True)
    print(text_table(lines))


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sets", "tail"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", nargs=4, metavar=("FOLDER", "FILE", "TARGET", "COLUMNS"))
    parser.add_argument("--bins", type=int, help="with --table: make as many grades of its one column of numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if args.part == "sets":
            measure_sets(Path(work), args.seeds, args.table, args.bins)
        else:
            measure_tail(Path(work), args.seeds)


if __name__ == "__main__":
    main()
