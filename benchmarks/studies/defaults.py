"""Fine-tuning as it comes beside fixed recipes, on sets of photographs, over seeds: does it hold the probe's start?

    python -m benchmarks.studies.defaults FOLDER ... --size 96 --seeds 0 1 2 --epochs 5 --work FOLDER

Each FOLDER has one folder a class, or train/, val/ and test/ of such folders. `--recipes` names others too: what comes
with one choice made differently: of flips and turns, of crops, of the backbone's λ. A seed draws everything in
fine-tuning; the splits are the same. `start` and `epoch 1` are accuracies on validation, `probe` and `fine-tuned` those
of the kept epoch on test, in percent, means over seeds. Below, pooled over sets and seeds: the mean difference, with
its 95 % interval by Student's t over the trainings (sets times seeds). What is there already is not run again.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from headstart.config.completion import complete_params
from headstart.config.loader import load_params
from headstart.core import paths
from headstart.core.io import read_json, read_table
from headstart.stages import evaluate, features, finetune, prepare, probe
from headstart.training import datamodule
from headstart.training.augment_choice import PROBABILITY

PARAMS = Path(__file__).parents[2] / "params.yaml"
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": {"backbone": 0.003, "head": 0.003}, "warmup_epochs": 1}
DECOUPLED: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": {"backbone": 3e-4, "head": 1e-3},
    "l2": {"kind": "decoupled", "backbone": None, "head": None},
    "decay": {"backbone": 0.05, "head": 0.05},
    "warmup_epochs": 1,
}
RECIPES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "SGD, training statistics": SGD | {"lr": {"backbone": 0.01, "head": 0.01}, "batch_norm": "train", "ema": None},
    "SGD, frozen statistics, clipped": SGD
    | {"batch_norm": "frozen", "clip": 1.0, "ema": None, "augment": {"hflip": 0.5}},
    "AdamW, flips, crops, smoothing": DECOUPLED
    | {"batch_norm": "train", "ema": None, "label_smoothing": 0.1, "augment": {"hflip": 0.5, "scale": [0.35, 1.0]}},
}
FLIPS = ("hflip", "vflip", "quarter_turn")
VARIANTS: dict[str, dict[str, Any]] = {
    "no flips or turns": {"augment": dict.fromkeys(FLIPS, 0.0)},
    "all flips and turns": {"augment": dict.fromkeys(FLIPS, PROBABILITY)},
    "no crops": {"augment": {"scale": [1.0, 1.0]}},
    "crops from 35 %": {"augment": {"scale": [0.35, 1.0]}},
    "λ 0 of the backbone": {"l2": {"backbone": 0.0}},
    "λ 0.01 of the backbone": {"l2": {"backbone": 0.01}},
    "2 windows": {"shuffle_windows": 2},
    "4 windows": {"shuffle_windows": 4},
    "16 windows": {"shuffle_windows": 16},
}


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--backbone", default="pip:tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of every recipe; as it comes where it is not given")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=[*RECIPES, *VARIANTS])
    parser.add_argument("--block-bytes", type=int, default=datamodule.BLOCK_BYTES, help="of shuffle_windows")
    parser.add_argument("--work", type=Path, required=True, help="where projects are made; kept")
    args = parser.parse_args()
    datamodule.BLOCK_BYTES = args.block_bytes
    work, runs = args.work.resolve(), []
    for images in (folder.resolve() for folder in args.images):
        backbone = {"name": args.backbone, "image_size": args.size}
        for seed in args.seeds:
            for recipe in args.recipes:
                changes = (
                    (RECIPES | VARIANTS)[recipe] | {"seed": seed} | ({"epochs": args.epochs} if args.epochs else {})
                )
                began = time.perf_counter()
                runs.append(figures_of(work / f"{images.name}-{args.size}", images, backbone, recipe, changes))
                seconds = time.perf_counter() - began
                print(f"{images.name}, {recipe}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    print_table(runs)
    print_pooled(runs)
    print(f"{os.cpu_count()} cores", flush=True)


def figures_of(
    project: Path, images: Path, backbone: dict[str, Any], recipe: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """Train by a recipe, unless that was done, and return the figures of it."""
    project.mkdir(parents=True, exist_ok=True)
    results = project / "results.json"
    known = read_json(results) if results.exists() else {}
    key = f"{recipe}: {json.dumps(changes | backbone, sort_keys=True)}"
    if key not in known:
        with contextlib.chdir(project), Path("log").open("a") as log, contextlib.redirect_stdout(log):
            shutil.copy(PARAMS, "params.yaml")
            source = {"source": "imagefolder", "path": str(images), "on_bad_image": "skip"}
            run = {"tracking": "disabled", "cache": "cache"}
            content = {"prepare": source, "backbone": backbone, "probe": {"heads": []}, "run": run}
            complete_params(Path("params.yaml"), content | {"finetune": changes})
            params = load_params(Path("params.yaml"))
            for stage in (finetune, evaluate) if known else (prepare, features, probe, finetune, evaluate):
                stage.run(params.declared(stage.PARAMS))
            history = [float(row["val_accuracy"]) for row in read_table(paths.HISTORY)]
            models = read_json(paths.report_of("evaluate"))["models"]
            known[key] = {
                "set": images.name,
                "recipe": recipe,
                "history": history,
                "best_epoch": read_json(paths.report_of("finetune"))["best_epoch"],
                "test": {name: [models[name]["accuracy"], models[name]["nll"]] for name in ("probe", "finetune")},
            }
        results.write_text(json.dumps(known))
    figures: dict[str, Any] = known[key]
    return figures


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    """Print a row for each set and recipe."""
    print("| set | recipe | start | epoch 1 | probe | fine-tuned | its range | NLL of both |")
    print("|---|---|---|---|---|---|---|---|")
    for images, recipe in dict.fromkeys((run["set"], run["recipe"]) for run in runs):
        mine = [run for run in runs if (run["set"], run["recipe"]) == (images, recipe)]
        start, first = (100 * np.mean([run["history"][epoch] for run in mine]) for epoch in (0, 1))
        probe_test, tuned = (np.array([run["test"][name] for run in mine]) for name in ("probe", "finetune"))
        low, mean, high = (100 * figure for figure in (tuned[:, 0].min(), tuned[:, 0].mean(), tuned[:, 0].max()))
        losses = f"{probe_test[:, 1].mean():.3f}, {tuned[:, 1].mean():.3f}"
        row = f"{start:.1f} | {first:.1f} | {100 * probe_test[:, 0].mean():.1f} | {mean:.1f}"
        print(f"| {images} | {recipe} | {row} | {low:.1f} to {high:.1f} | {losses} |")


def print_pooled(runs: Sequence[dict[str, Any]]) -> None:
    """Print the pooled differences of each recipe, and how far the default is from the best of the others."""
    print("\n| recipe | trainings | epoch 1 minus start | fine-tuned minus probe |")
    print("|---|---|---|---|")
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        mine = [run for run in runs if run["recipe"] == recipe]
        first = [run["history"][1] - run["history"][0] for run in mine]
        tuned = [run["test"]["finetune"][0] - run["test"]["probe"][0] for run in mine]
        print(f"| {recipe} | {len(mine)} | {_interval(first)} | {_interval(tuned)} |")
    behind = []
    for images in dict.fromkeys(run["set"] for run in runs):
        means = {
            recipe: np.mean(
                [run["test"]["finetune"][0] for run in runs if (run["set"], run["recipe"]) == (images, recipe)]
            )
            for recipe in {run["recipe"] for run in runs if run["set"] == images} - set(VARIANTS)
        }
        ours = means.pop("as it comes", None)
        if ours is not None and means:
            behind.append(float(ours - max(means.values())))
    if behind:
        print(f"\nas it comes minus the best other recipe of each set: {100 * np.mean(behind):+.1f} points on average")


def _interval(differences: Sequence[float]) -> str:
    """Return the mean and its 95 % interval in points."""
    values = 100 * np.array(differences)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{values.mean():+.1f} ({values.mean() - half:+.1f} to {values.mean() + half:+.1f})"


if __name__ == "__main__":
    main()
