"""Compare test accuracies by the size at which training images are stored, and with images of their original size.

    python -m benchmarks.studies.store_sizes --pictures FOLDER --work FOLDER

FOLDER has train/ and val/ with one folder per class. A seed selects the training images and seeds fine-tuning, the same
for every size; all of val/ is the test split. Each figure is a test accuracy in percent: the mean over seeds and its
range. Runs that are complete are not repeated.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.studies.regularisers import draw, params_of
from headstart.stages import evaluate, features, finetune, prepare, probe

MODELS = ("finetune", "probe")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the input, in pixels")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.15, 1.5], help="values of prepare.train_scale")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--work", type=Path, required=True, help="where projects are created; kept")
    args = parser.parse_args()
    images, work = args.pictures.resolve(), args.work.resolve()
    print("| input | training images stored at | " + " | ".join(MODELS) + " |\n|---|---|---|---|")
    for size in args.sizes:
        for scale in (None, *args.scales):
            runs = []
            for seed in args.seeds:
                raw, began = work / f"pictures-{seed}", time.perf_counter()
                if not raw.exists():
                    draw(images, raw, args.per_class, seed)
                project = work / f"{size}-{scale}-{seed}"
                runs.append(accuracies(project, raw, size=size, scale=scale, seed=seed, epochs=args.epochs))
                print(f"{project.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            values = [[100 * run[model] for run in runs] for model in MODELS]
            cells = [f"{statistics.mean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in values]
            stored = "their own size" if scale is None else f"{scale} x the input"
            print(f"| {size} px | {stored} | " + " | ".join(cells) + " |", flush=True)


def accuracies(project: Path, raw: Path, *, size: int, scale: float | None, seed: int, epochs: int) -> dict[str, float]:
    """Return the test accuracy of the fine-tuned model and of the probe."""
    results = project / "accuracies.json"
    if not results.exists():
        project.mkdir(parents=True, exist_ok=True)
        params = params_of({"epochs": epochs, "seed": seed}, cache=project.parent / "cache")
        content = params.model_dump()
        content["prepare"] |= {"path": str(raw), "train_scale": scale}
        content["backbone"]["image_size"] = size
        content["probe"]["heads"] = []
        params = type(params).model_validate(content)
        with contextlib.chdir(project), Path("log").open("w") as log, contextlib.redirect_stdout(log):
            for stage in (prepare, features, probe, finetune, evaluate):
                stage.run(params.declared(stage.PARAMS))
            models = json.loads(Path("reports/evaluate.json").read_text())["models"]
        results.write_text(json.dumps({name: models[name]["accuracy"] for name in MODELS}))
    accuracies: dict[str, float] = json.loads(results.read_text())
    return accuracies


if __name__ == "__main__":
    main()
