"""Peak memory of features and training, and images a second, of backbones: by default those of the extra ``backbones``.

    python -m benchmarks backbones --size 224 --batch-size 32 --count 320 --epochs 2 [--only pip:NAME ...]

Each stage is a process of its own, run as in `dvc repro`; its peak is that of its resident memory (RSS), of which
Python's libraries are a part that ``--only`` a small model, such as test_resnet, shows. The weights are random.
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

from benchmarks.contestants.headstart import make_project, project, stage
from benchmarks.machine import ROOT
from benchmarks.options import Options
from benchmarks.rounds import Rates
from benchmarks.task import Task
from headstart.core.text import text_table
from headstart.models.pip_weights import PACKAGES, PREFIX


def run(options: Options) -> tuple[str, Rates]:
    """Run the stages for each backbone; return the table, and images/s of features and of training."""
    rows = [["", "features MB", "training MB", "features images/s", "training images/s"]]
    rates: Rates = {}
    for name in options.only or [PREFIX + each for each in PACKAGES]:
        task = replace(options.task, model=name)
        make_project(task, "prepare")
        features_peak = peak(task, "features")
        stage(task, "probe")
        training_peak = peak(task, "finetune")
        figures = json.loads((project(task) / "reports/features.json").read_text())
        with (project(task) / "reports/finetune/history.csv").open(newline="") as file:
            seconds = float(list(csv.DictReader(file))[-1]["train_seconds"])
        rates[name] = [figures["images_per_second"], task.count / seconds]
        peaks = (f"{each / 1e6:.0f}" for each in (features_peak, training_peak))
        rows.append([name, *peaks, *(f"{rate:.1f}" for rate in rates[name])])
    return text_table(rows), rates


def peak(task: Task, name: str) -> int:
    """Run a stage and return the peak of its resident memory, in bytes; its output is in the project's folder."""
    with (project(task) / f"{name}.txt").open("wb") as output:
        process = subprocess.Popen(
            ["sh", str(ROOT / "slurm/launch.sh"), name],  # noqa: S607  (the system's)
            cwd=project(task),
            env=os.environ | {"VIRTUAL_ENV": sys.prefix},
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"headstart {name}: {(project(task) / f'{name}.txt').read_text()}")
    return 1024 * usage.ru_maxrss
