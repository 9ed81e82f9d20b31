"""Measure prepare's images a second and peak memory on invented photographs.

    python benchmarks/prepare.py --pictures 20000 --folder /tmp/prepare-benchmark

The peak is the proportional set size of the stage and its workers together (what they share counts once).
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

PARAMS = Path(__file__).parents[1] / "params.yaml"


def main() -> None:
    """Draw the pictures, run the stage, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--folder", type=Path, required=True, help="removed first")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    draw(args.folder / "data/raw", args.pictures)
    write_params(args.folder / "params.yaml", args.backbone, args.image_size)
    process = psutil.Popen([sys.executable, "-m", "headstart.stages.prepare"], cwd=args.folder)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    report = json.loads((args.folder / "reports/prepare.json").read_text())
    shown = {key: report[key] for key in ("pictures", "images_per_second", "seconds")}
    print(json.dumps(shown | {"peak_mb": round(peak / 2**20), "cores": os.cpu_count()}))


def draw(root: Path, count: int) -> None:
    """Write JPEGs of 160 x 120 in ten classes: crops of some smooth noise, each different."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (60, 80, 3), np.uint8)
    canvas = Image.fromarray(small).resize((1600, 1200), Image.Resampling.BICUBIC)
    for i in range(count):
        folder = root / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        left, top = i % 1440, i // 1440 * 7
        canvas.crop((left, top, left + 160, top + 120)).save(folder / f"{i:06d}.jpg", quality=85)


def write_params(path: Path, backbone: str, image_size: int) -> None:
    """Write the repository's params.yaml with another source and backbone."""
    text = PARAMS.read_text()
    for old, new in (
        ("source: digits", "source: imagefolder"),
        ("name: bundled", f"name: {backbone}"),
        ("image_size: null", f"image_size: {image_size}"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def memory(process: psutil.Process) -> int:
    """Give the bytes of a process and those that it started, what they share counted once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total


if __name__ == "__main__":
    main()
