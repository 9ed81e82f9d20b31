"""Kill prepare or features at random moments, start it again, and compare its end with that of an undisturbed run.

    python -m benchmarks.kills_data --stage prepare --kills 50 --ranks 2
    python -m benchmarks.kills_data --stage features --kills 50 --ranks 2

SIGKILL, SIGTERM or SIGINT to one rank, after which the others are ended as srun's --kill-on-bad-exit and torchrun do,
or SIGTERM or SIGINT to all. Images are slowed down, so that kills come within all parts of a run. Counted are the runs
that hung, those whose outputs differ from the uninterrupted run's in a byte, and those that did more work again than
the shards, or the files of features, that were open when they were killed.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.kills import FORK, PATIENCE, wait
from benchmarks.ranks import as_rank, free_port
from headstart.core.paths import FEATURES, PREPARED
from headstart.data import packing
from headstart.data.loader import Normalize
from headstart.features import extract
from headstart.stages import features, prepare

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.images import params

STAGES: dict[str, tuple[Any, Path]] = {"prepare": (prepare, PREPARED), "features": (features, FEATURES)}
IMAGES = 400
OPEN = 16
"""Images of a shard, and of a file of features: what a killed rank may lose."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORK = Path("work.txt")
SETTINGS: dict[str, Any] = {
    "prepare.source": "csv:list.csv",
    "prepare.path": "images",
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "features.batch_size": 4,
}


def draw() -> None:
    """Draw images in small classes and groups that share some, so that splits differ from those that were foreseen."""
    Path("images").mkdir()
    generator, lines = np.random.default_rng(0), ["path,label,group"]
    for i in range(IMAGES):
        Image.fromarray(generator.integers(0, 256, (40, 30, 3), np.uint8)).save(f"images/{i:03d}.png")
        lines.append(f"{i:03d}.png,c{i // 4:02d},")
    for i in range(0, IMAGES, 50):
        shutil.copy(f"images/{i:03d}.png", f"images/{i:03d}again.png")
        lines.append(f"{i:03d}again.png,c{i // 4:02d},group{i}")
    Path("images/list.csv").write_text("\n".join(lines), encoding="utf-8")


def run(stage: str, cache: str, pause: float) -> None:
    """Run a stage as one of the ranks, slowed down by a pause for each image, with its output in a file."""
    log = os.open(f"log-{os.environ.get('RANK', '0')}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    real_decode, real_forward = packing.Packer._decode, Normalize.forward  # noqa: SLF001  (where the work is done)

    def noted(images: int) -> None:
        with WORK.open("a") as file:
            file.write("\n" * images)
        time.sleep(pause * images)

    def decode(self: Any, *arguments: Any, **options: Any) -> Any:
        noted(1)
        return real_decode(self, *arguments, **options)

    def forward(self: Any, pixels: Any) -> Any:
        noted(len(pixels))
        return real_forward(self, pixels)

    patches: list[tuple[Any, str, Any]] = [
        (packing, "SHARD_IMAGES", OPEN),
        (extract, "ROWS", OPEN),
        (packing.Packer, "_decode", decode),
        *([(Normalize, "forward", forward)] if stage == "features" else []),
    ]
    for owner, name, value in patches:
        setattr(owner, name, value)
    module = STAGES[stage][0]
    module.run(params({**SETTINGS, "run.cache": cache, "run.timeout_minutes": 1}).declared(module.PARAMS))


def start(stage: str, ranks: int, cache: str, pause: float) -> list[Any]:
    """Fork the ranks."""
    port = free_port()
    arguments = [(i, ranks, port, run, (stage, cache, pause)) for i in range(ranks)]
    processes = [FORK.Process(target=as_rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    return processes


def result(folder: Path) -> str:
    """Name what a run wrote, by its names and bytes."""
    files = sorted(folder.iterdir())
    of_files = repr([(path.name, hashlib.sha256(path.read_bytes()).digest()) for path in files])
    return hashlib.sha256(of_files.encode()).hexdigest()


def work_done() -> int:
    """Count the images that were decoded, or whose features were computed, since this was last asked."""
    count = WORK.stat().st_size if WORK.exists() else 0
    WORK.unlink(missing_ok=True)
    return count


def main() -> None:
    """Kill, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.chdir(tempfile.mkdtemp(prefix=f"kills-{args.stage}-"))
    draw()
    if args.stage == "features":
        assert set(wait(start("prepare", 1, "whole", 0.0), 300)) == {0}, Path.cwd()
    folder = STAGES[args.stage][1]
    work_done()
    began = time.monotonic()
    assert set(wait(start(args.stage, args.ranks, "whole", 0.0), 300)) == {0}, Path.cwd()
    undisturbed, expected, work = time.monotonic() - began, result(folder), work_done()

    generator, counts = random.Random(args.seed), Counter[str]()  # noqa: S311  (nothing secret)
    while counts["kills"] < args.kills:
        shutil.rmtree(folder)
        killed, pause = 0, generator.choice([0.001, 0.005, 0.02])
        counts["runs"] += 1
        while not folder.exists():
            last = killed == generator.randint(3, 8)
            processes = start(args.stage, args.ranks, f"run-{counts['runs']}", 0.0 if last else pause)
            if not last:
                time.sleep(generator.uniform(0, undisturbed + 1.2 * work * pause / args.ranks))
                number = generator.choice(SIGNALS)
                everyone = number != signal.SIGKILL and generator.random() < 0.5
                alive = [each for each in (processes if everyone else [generator.choice(processes)]) if each.is_alive()]
                for process in alive:
                    os.kill(process.pid, number)
                killed += bool(alive)
                counts.update(["kills", number.name] if alive else [])
            codes = wait(processes, PATIENCE)
            if None in codes or (last and set(codes) != {0}):
                counts["hung" if None in codes else "failed"] += 1
                print(f"{Path.cwd()}: run {counts['runs']}: {codes}", flush=True)
                break
        if folder.exists() and result(folder) != expected:
            counts["differed"] += 1
        again = work_done() - work
        counts["again"] += again
        counts["lost"] += again > killed * args.ranks * OPEN
    names = [number.name for number in SIGNALS]
    print(f"{args.stage}: {counts['kills']} kills of {counts['runs']} runs on {args.ranks} ranks: ", end="")
    print(", ".join(f"{counts[name]} {name}" for name in (*names, "hung", "failed", "differed", "lost")), end="; ")
    print(f"{counts['again'] / counts['kills']:.1f} images done again for each kill")
    sys.exit(any(counts[name] for name in ("hung", "failed", "differed", "lost")))


if __name__ == "__main__":
    main()
