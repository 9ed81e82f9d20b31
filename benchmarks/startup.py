"""Seconds from nothing: imports, --help, and to the end of a first epoch, for which Headstart also packs the images.

With --count of one batch the first epoch is the first step.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.contestants.headstart import make_project, stage
from benchmarks.machine import ROOT
from benchmarks.options import Options
from headstart.core.text import text_table

TIMM = "timm, to the end of the first epoch"
STAGES = ("prepare", "features", "probe", "finetune")


def run(options: Options) -> tuple[str, dict[str, list[float]]]:
    """Time them in turn; give the table and the figures."""
    task = replace(options.task, epochs=1)
    content = json.dumps(asdict(replace(task, workers=4)))
    commands = {
        "import torch, timm": [sys.executable, "-c", "import torch, timm"],
        "headstart --help": [str(Path(sys.executable).parent / "headstart"), "--help"],
        TIMM: [options.peers, "-m", "benchmarks.contestants", "timm", "train", content],
    }
    ours = [f"headstart {name}" for name in STAGES]
    total = "headstart, to the end of the first epoch"
    seconds: dict[str, list[float]] = {name: [] for name in [*commands, *ours, total]}
    for _ in range(options.rounds):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - began)
        make_project(task)
        for name, row in zip(STAGES, ours, strict=True):
            began = time.perf_counter()
            stage(task, name)
            seconds[row].append(time.perf_counter() - began)
        seconds[total].append(sum(seconds[row][-1] for row in ours))
    rows = [["", "seconds", "range"]]
    for name, found in seconds.items():
        rows.append([name, f"{statistics.median(found):.2f}", f"{min(found):.2f} to {max(found):.2f}"])
    return text_table(rows), seconds
