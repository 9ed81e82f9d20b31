"""Measure the time and the peak memory of evaluate and of the report, by the number of test images.

    python -m benchmarks.evaluating

Invented images of 40 x 40 in ten classes, 600 each of train and validation; the bundled backbone, fine-tuned for one
epoch, with the default heads. The peak is the proportional set size of the program and what it starts, read every
50 ms.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.machine import ROOT
from benchmarks.memory import pss
from headstart.core.text import text_table

CLASSES, OTHERS = 10, 600
BEFORE = ("prepare", "features", "probe", "finetune")


def draw(folder: Path, counts: dict[str, int]) -> None:
    """Write noise around a colour that tells something of the class."""
    generator = np.random.default_rng(0)
    colours = generator.integers(90, 160, (CLASSES, 3))
    for split, count in counts.items():
        for i in range(count):
            target = folder / split / f"class{i % CLASSES}" / f"{split}-{i:06d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            noise = generator.normal(colours[i % CLASSES], 60, (10, 10, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).resize((40, 40)).save(target)


def measured(project: Path, command: str) -> tuple[float, float]:
    """Run a command of headstart; return its seconds and its peak in MB."""
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "headstart", command], cwd=project, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, pss(process))
        time.sleep(0.05)
    assert process.returncode == 0, command
    return time.perf_counter() - began, peak / 1e6


def main() -> None:
    """Print a row a number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 50_000], help="default: %(default)s")
    rows = [["test images", "evaluate s", "images/s", "peak MB", "report s", "peak MB", "page MB"]]
    for count in parser.parse_args().counts:
        with tempfile.TemporaryDirectory() as name:
            project = Path(name)
            draw(project / "data" / "raw", {"train": OTHERS, "val": OTHERS, "test": count})
            params = YAML(typ="safe").load(ROOT / "params.yaml")
            params["prepare"] |= {"source": "imagefolder", "store": "jpeg"}
            params["finetune"] |= {"epochs": 1, "warmup_epochs": 0, "precision": "32-true"}
            params["run"] |= {"tracking": "disabled", "cache": "cache"}
            YAML(typ="safe").dump(params, project / "params.yaml")
            for stage in BEFORE:
                measured(project, stage)
            seconds, peak = measured(project, "evaluate")
            report_seconds, report_peak = measured(project, "report")
            size = (project / "reports" / "index.html").stat().st_size / 1e6
            figures = [seconds, count / seconds, peak, report_seconds, report_peak, size]
            rows.append([f"{count:,}", *(f"{each:,.1f}" for each in figures)])
            print(text_table([rows[0], rows[-1]]), flush=True)
    print(text_table(rows))


if __name__ == "__main__":
    main()
