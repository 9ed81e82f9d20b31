"""prepare's images/s against a serial loop of Pillow that computes the same pixels, and its peak memory.

The peak is the proportional set size of the stage and its workers together (what they share counts once), read every
half second, on synthetic images of 160 x 120 (``--memory``).
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.contestants.headstart import make_project, project
from benchmarks.contestants.pillow import stored
from benchmarks.memory import pss
from benchmarks.options import Options
from benchmarks.rounds import Contestant, Rates, run_rounds, table
from benchmarks.task import CLASSES, Task
from headstart.core.text import text_table
from headstart.data.dataset import PreparedDataset
from headstart.data.manifest import manifest_rows

SERIAL = "serial Pillow loop"
CONTESTANTS = (
    Contestant(SERIAL, "pillow", "prepare"),
    Contestant("headstart, 1 worker", "headstart", "prepare", {"workers": 1}),
    Contestant("headstart, 2 workers", "headstart", "prepare", {"workers": 2}),
)
CHECKED = 50  # images


def run(options: Options) -> tuple[str, Rates]:
    """Compare the contestants, then measure the memory; return the tables and the figures."""
    rates = run_rounds(options.chosen(CONTESTANTS), options.task, rounds=options.rounds, peers=options.peers)
    _check(options.task)
    shown = table(rates, {f"× {SERIAL}": SERIAL})
    peaks = {str(count): [_peak_mb(options.task, count)] for count in options.memory}
    if peaks:
        rows = [[f"{int(count):,} images", f"{peak:,.0f}"] for count, [peak] in peaks.items()]
        shown += "\n\n" + text_table([["peak memory", "MB"], *rows])
    return shown, rates | peaks


def _check(task: Task) -> None:
    """Assert that the last project's store has the pixels that the serial loop computes."""
    prepared = PreparedDataset.open(project(task) / "data/prepared")
    for row, image in zip(range(CHECKED), manifest_rows(prepared.folder), strict=False):
        assert np.array_equal(prepared.pixels(row), stored(Path(task.images) / image["source"], task))


def _peak_mb(task: Task, count: int) -> float:
    """Prepare small images from scratch; return the peak in MB."""
    small = replace(task, images=str(Path(task.work) / f"small-{count}"), model="resnet18", size=64)
    if not Path(small.images).exists():
        _draw(Path(small.images), count)
    make_project(small)
    process = psutil.Popen([sys.executable, "-m", "headstart", "prepare"], cwd=project(small))
    peak = 0
    while process.poll() is None:
        peak = max(peak, pss(process))
        time.sleep(0.5)
    assert process.returncode == 0
    return peak / 1e6


def _draw(folder: Path, count: int) -> None:
    """Write JPEGs of 160 x 120: different crops of one image of smooth noise."""
    small = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    canvas = Image.fromarray(small).resize((1600, 1200), Image.Resampling.BICUBIC)
    temporary = folder.with_name(f".{folder.name}")
    for i in range(count):
        target = temporary / f"class{i % CLASSES}" / f"{i:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        left, top = i % 1440, i // 1440 * 7
        canvas.crop((left, top, left + 160, top + 120)).save(target, quality=85)
    temporary.rename(folder)
