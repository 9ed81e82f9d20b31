"""What the probe chooses of flips and quarter turns, and what training with it is worth against none and against all.

    python -m benchmarks.studies.augmentation digits FOLDER FOLDER --work FOLDER --backbone NAME --size 96

A FOLDER has one folder a class; `digits` are scikit-learn's. For each set the table has the probe's verdicts, then test
accuracy in percent and loss in nats of fine-tuning with no flips or turns, with the chosen ones and with all: the mean
over seeds. Where two of them are the same settings they are one training. What is there already is not run again:
stopped and started again it goes on. `--seeds` without a number prints the verdicts alone.
"""

import argparse
import contextlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.stages import evaluate, features, finetune, prepare, probe
from headstart.training.augment_choice import PROBABILITY, read_evidence

KEYS = ("hflip", "vflip", "quarter_turn")


def main() -> None:
    """Run what is missing, printing the table's row of each set as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="where projects are made; kept")
    parser.add_argument("--backbone", default="bundled")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    print("| set | " + " | ".join(KEYS) + " | none | chosen | all |")
    print("|---" * (len(KEYS) + 4) + "|")
    for name in args.sets:
        project = args.work.resolve() / Path(name).name
        source = (
            {"source": "digits"} if name == "digits" else {"source": "imagefolder", "path": str(Path(name).resolve())}
        )
        fixed = {"prepare": source | {"on_bad_image": "skip"}, "probe": {"heads": []}}
        fixed["backbone"] = {"name": args.backbone, "image_size": args.size}
        fixed["run"] = {"tracking": "disabled", "cache": str(args.work.resolve() / "cache")}
        print(row_of(project, fixed, args.seeds, args.epochs), flush=True)
    print(f"{os.cpu_count()} cores")


def row_of(project: Path, fixed: dict[str, Any], seeds: list[int], epochs: int) -> str:
    """Return the table's row of one set."""
    project.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(project), (project / "log").open("a") as log, contextlib.redirect_stdout(log):
        if not (project / "models/probe/augmentation.json").exists():
            params = parse_params(fixed, partial=True)
            for stage in (prepare, features, probe):
                stage.run(params.declared(stage.PARAMS))
        verdicts = read_evidence()["changes"]
        chosen = tuple(name for name in KEYS if verdicts.get(name, {}).get("kept"))
        tried = [[figures_of(fixed, which, seed, epochs) for seed in seeds] for which in ((), chosen, KEYS)]
    cells = [f"{'kept' if each['kept'] else 'refused'} ({each['interval'][1] / each['loss']:+.1%})"
             if (each := verdicts.get(name)) else "not tried" for name in KEYS]  # fmt: skip
    for runs in tried:
        means = [statistics.mean(values) for values in zip(*runs, strict=True)]
        cells.append(f"{100 * means[0]:.1f}, {means[1]:.3f}" if means else "")
    return f"| {project.name} | " + " | ".join(cells) + " |"


def figures_of(fixed: dict[str, Any], which: tuple[str, ...], seed: int, epochs: int) -> tuple[float, float]:
    """Return test accuracy and loss of a training in the working directory's project, run unless it was already."""
    results = Path("results.json")
    known = json.loads(results.read_text()) if results.exists() else {}
    key = f"{'+'.join(which)} {seed} {epochs}"
    if key not in known:
        params = _params_of(fixed, which, seed, epochs)
        for stage in (finetune, evaluate):
            stage.run(params.declared(stage.PARAMS))
        model = json.loads(Path("reports/evaluate.json").read_text())["models"]["finetune"]
        known[key] = model["accuracy"], model["nll"]
        results.write_text(json.dumps(known))
    accuracy, nll = known[key]
    return accuracy, nll


def _params_of(fixed: dict[str, Any], which: tuple[str, ...], seed: int, epochs: int) -> Params:
    augment = {name: PROBABILITY if name in which else 0.0 for name in KEYS}
    settings = {"epochs": epochs, "seed": seed, "augment": augment, "precision": "32-true", "batch_norm": "frozen"}
    rates = {"optimizer": "adam", "lr": {"backbone": 3e-4, "head": 3e-4}, "clip": 1.0}
    return parse_params({**fixed, "finetune": {**settings, **rates}}, partial=True)


if __name__ == "__main__":
    main()
