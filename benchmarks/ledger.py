"""Measure the ledger's share of a fine-tuning's time, and its shrink against the estimate made before the run.

    python benchmarks/ledger.py [finetune.KEY=VALUE ...]

Run it in a project's folder in which prepare, features and probe have run: it fine-tunes there, anew and untracked.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headstart.config.loader import parse_params
from headstart.stages import finetune
from headstart.training.regularization.ledger import RegularizationLedger


def main() -> None:
    """Train with the ledger's methods timed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="finetune.KEY=VALUE")
    yaml = YAML(typ="safe")
    content = yaml.load(Path("params.yaml"))
    content["run"] |= {"tracking": "disabled", "resume": False}
    content["finetune"] |= {
        "epochs": 10,
        "optimizer": "sgd",
        "lr": {"backbone": 0.01, "head": 0.01},
        "warmup_epochs": 1,
        "batch_norm": "train",
        "ema": None,
    }
    for change in parser.parse_args().changes:
        key, _, value = change.partition("=")
        *sections, name = key.split(".")
        place: Any = content
        for section in sections:
            place = place[section]
        place[name] = yaml.load(value)
    spent = [timed("start_epoch"), timed("step"), timed("end_epoch")]
    finetune.run(parse_params(content).declared(finetune.PARAMS))
    report = json.loads(Path("reports/finetune.json").read_text())
    seconds = sum(sum(each) for each in spent)
    print(
        f"the ledger took {seconds:.2f} s of {report['training_seconds']:.2f} s: "
        f"{seconds / report['training_seconds']:.2%}"
    )
    rows = Path("reports/finetune/ledger.csv").read_text().splitlines()
    names = rows[0].split(",")
    last = [dict(zip(names, row.split(","), strict=True)) for row in rows if row.startswith(f"{report['epochs']},")]
    measured = {row["group"]: float(row["total_shrink"]) for row in last}
    for group in report["groups"]:
        if group["expected_shrink"] != 0:
            expected = group["expected_shrink"]
            shown = "no estimate" if expected is None else f"expected {expected:.3%}"
            print(f"{group['group']}: {shown}, measured {measured[group['group']]:.3%} after {report['epochs']} epochs")


def timed(name: str) -> list[float]:
    """Time every call of a method of the ledger from now on."""
    seconds: list[float] = []
    method = getattr(RegularizationLedger, name)

    def timing(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(RegularizationLedger, name, timing)
    return seconds


if __name__ == "__main__":
    main()
