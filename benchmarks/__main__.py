"""Measure Headstart beside what users would take instead: python -m benchmarks NAME [options], in the repository.

A table on stdout, and a JSON file with every round, the hardware, the versions and the work. The names below measure
speed; `accuracy` measures accuracy against minutes, with options of its own: python -m benchmarks accuracy --help.
"""

import argparse
import importlib
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import timm
import torch

from benchmarks.images import make_images, mean_bytes
from benchmarks.machine import ROOT, describe
from benchmarks.options import Options
from benchmarks.task import Task
from headstart.config.loader import load_params
from headstart.models.backbone import input_config

NAMES = ("loader", "epoch", "prepare", "startup", "overhead", "ddp", "features", "backbones")
LARGE, SMALL = (500, 375), (32, 32)  # pixels of the JPEGs


def main() -> None:
    """Make the images, run the sub-benchmark, print and write what it found."""
    if sys.argv[1:2] == ["accuracy"]:
        importlib.import_module("benchmarks.accuracy.grid").main(sys.argv[2:])
        return
    args = _parser().parse_args()
    work = args.work.resolve()
    small = args.cifar or args.name == "overhead"
    count = args.count or (6400 if small else 640)
    model = args.model or ("resnet10t" if args.cifar else "mobilenetv3_small_100")
    images = make_images(work, args.pictures, count, SMALL if small else LARGE)
    config = input_config(timm.create_model(model), args.size or (32 if small else 224))
    scale = load_params(ROOT / "params.yaml").prepare.train_scale
    task = Task(
        images=str(images),
        work=str(work),
        count=count,
        model=model,
        size=config["input_size"][1],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        train_side=sys.maxsize if scale is None else math.ceil(scale * config["input_size"][1]),
        batch_size=args.batch_size,
        epochs=args.epochs,
        precision=args.precision,
        device=args.device,
    )
    if count % task.batch_size:
        sys.exit(f"error: --count {count} is no multiple of --batch-size {task.batch_size}")
    about = {"machine": describe(args.peers), "task": asdict(task), "mean_jpeg_bytes": mean_bytes(images)}
    print(json.dumps(about, indent=1))
    options = Options(task, args.rounds, args.peers, args.only, args.memory)
    shown, figures = importlib.import_module(f"benchmarks.{args.name}").run(options)
    print(shown)
    results = work / f"{args.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results.write_text(json.dumps({**about, "rounds": figures}, indent=1))
    print(results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("name", choices=NAMES)
    add("--pictures", type=Path, help="folder of photographs, resized for the benchmark; none: they are invented")
    add("--cifar", action="store_true", help="32 px JPEGs and resnet10t, not 500 x 375 and mobilenetv3_small_100")
    add("--count", type=int, help="training images; none: 640, or 6,400 of 32 px")
    add("--model", help="timm's name")
    add("--size", type=int, help="side of the model's input; none: 224, or 32")
    add("--batch-size", type=int, default=64)
    add("--epochs", type=int, default=3, help="of each run; the first is a warm-up")
    add("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=5)
    add("--only", nargs="+", default=(), metavar="PART", help="run contestants whose name has one of these parts")
    add("--memory", type=int, nargs="+", default=(), help="prepare: numbers of images to measure its peak memory at")
    add("--peers", default=sys.executable, help="interpreter with benchmarks/peers.txt installed")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "headstart-benchmarks", help="folder that is kept")
    return parser


if __name__ == "__main__":
    main()
