"""Compare the regularisers of fine-tuning, and the heads on frozen features, on few images a class, over seeds.

    python -m benchmarks.studies.regularisers --pictures FOLDER --per-class 25 250 --work FOLDER

FOLDER holds train/ and val/ with one folder a class. A seed draws the training images and everything in fine-tuning;
all of val/ is the test split. `decoupled` has the decay that shrinks the weights as much as λ does, 2λ/(1 - momentum).
Each figure is a test accuracy in percent: the mean over seeds and its range. What is there already is not run again.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.stages import evaluate, features, finetune, prepare, probe

PARAMS = Path(__file__).parents[2] / "params.yaml"
NONE = {"backbone": None, "head": None}
KINDS: dict[str, dict[str, Any]] = {
    "l2": {"l2": {"kind": "l2", "backbone": 1e-4, "head": 1e-3}},
    "l2_sp": {"l2": {"kind": "l2_sp", "backbone": 1e-4, "head": 1e-3}},
    "decoupled": {"l2": {"kind": "decoupled", **NONE}, "decay": {"backbone": 2e-3, "head": 2e-2}},
    "none": {"l2": {"kind": "none", **NONE}},
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--per-class", type=int, nargs="+", default=[25, 250])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True, help="where projects are made; kept")
    args = parser.parse_args()
    images, work = args.pictures.resolve(), args.work.resolve()
    found: dict[int, list[dict[str, float]]] = {}
    for per_class in args.per_class:
        for seed in args.seeds:
            project = work / f"{per_class}-{seed}"
            began = time.perf_counter()
            found.setdefault(per_class, []).append(accuracies(project, images, per_class, seed, args.epochs))
            print(f"{project.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        print_table(found)


def accuracies(project: Path, images: Path, per_class: int, seed: int, epochs: int) -> dict[str, float]:
    """Return the test accuracy of every model for one seed."""
    if not (project / "data/raw").exists():
        draw(images, project / "data/raw", per_class, seed)
    results = project / "accuracies.json"
    known: dict[str, float] = json.loads(results.read_text()) if results.exists() else {}
    with contextlib.chdir(project), (project / "log").open("a") as log, contextlib.redirect_stdout(log):
        for kind, changes in KINDS.items():
            if kind in known:
                continue
            params = params_of({**changes, "epochs": epochs, "seed": seed}, cache=project.parent / "cache")
            for stage in (finetune, evaluate) if known else (prepare, features, probe, finetune, evaluate):
                stage.run(params.declared(stage.PARAMS))
            models = json.loads(Path("reports/evaluate.json").read_text())["models"]
            known |= {name: model["accuracy"] for name, model in models.items() if name != "finetune"}
            known[kind] = models["finetune"]["accuracy"]
            results.write_text(json.dumps(known))
    return known


def draw(images: Path, raw: Path, per_class: int, seed: int) -> None:
    """Copy all of val/ and a random choice of train/."""
    generator = random.Random(seed)  # noqa: S311  (draws images, not secrets)
    for folder in sorted(images.glob("*/*/")):
        names = sorted(path.name for path in folder.iterdir())
        target = raw / folder.relative_to(images)
        target.mkdir(parents=True)
        for name in generator.sample(names, per_class) if folder.parent.name == "train" else names:
            shutil.copy(folder / name, target / name)


def params_of(finetuning: dict[str, Any], *, cache: Path) -> Params:
    """Return the repository's params.yaml for photographs, with other values for fine-tuning."""
    content = YAML(typ="safe").load(PARAMS)
    content["prepare"]["source"] = "imagefolder"
    # Without what would train differently under another regulariser.
    content["finetune"] |= {"optimizer": "sgd", "lr": {"backbone": 0.01, "head": 0.01}, "ema": None} | finetuning
    content["finetune"]["augment"] |= {"scale": [0.35, 1.0], "hflip": 0.5, "vflip": 0.0, "quarter_turn": 0.0}
    content["run"] |= {"tracking": "disabled", "cache": str(cache), "resume": False}
    return parse_params(content)


def print_table(found: dict[int, list[dict[str, float]]]) -> None:
    """Print one row a model, one column a number of images."""
    print("| model | " + " | ".join(f"{per_class} a class" for per_class in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for name in next(iter(found.values()))[0]:
        cells = []
        for runs in found.values():
            values = [100 * run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {'fine-tuned, ' * (name in KINDS)}{name} | " + " | ".join(cells) + " |")
    print(f"{os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    main()
