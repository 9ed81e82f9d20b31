"""headstart predict against timm's own way, on the same images and the same cores.

    python -m benchmarks.predicting BUNDLE FOLDER [--base PYTHON] [--rounds 5]

FOLDER holds images in one folder a class. What is measured: seconds from the command to the first answer; images a
second, of the whole command and, for timm, of its loop alone as well; logits against timm's and torch's, from the base
install's interpreter; the peak of memory for few and for many paths.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import ROOT
from headstart.core.text import text_table

TIMM = {"timm, its defaults": ("256", "2"), "timm, batch 32": ("32", "2"), "timm, no workers": ("32", "0")}
OURS = "headstart predict"
MANY = 100_000


def link(paths: Sequence[Path], folder: Path, count: int) -> Path:
    """Fill a folder of classes with links to ``count`` images, chosen evenly, repeated where there are fewer."""
    for i in range(count):
        path = paths[i * len(paths) // count if count <= len(paths) else i % len(paths)]
        place = folder / path.parent.name / f"{i:06d}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.absolute())
    return folder


def run(command: Sequence[str]) -> tuple[float, float, float, str]:
    """Run a command; return seconds to its first line after the header, seconds in all, peak MB, and its stdout."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    first = time.perf_counter() - began
    lines += process.stdout.readlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return first, time.perf_counter() - began, usage.ru_maxrss / 1e3, "".join(lines)


def first_answers(base: str, bundle: str, image: Path, rounds: int) -> list[float]:
    """Return the seconds from the command's start to the row of one image, once a round."""
    return [run([base, "-m", "headstart", "predict", bundle, str(image)])[0] for _ in range(rounds)]


def rates(base: str, bundle: str, folder: Path, scratch: Path, rounds: int) -> dict[str, list[float]]:
    """Measure all in turn; return images/s by name."""
    count = sum(path.is_file() for path in folder.rglob("*"))
    measured: dict[str, list[float]] = {}
    for number in range(rounds):
        names = [OURS, *TIMM]
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            if name == OURS:
                command = [base, "-m", "headstart", "predict", bundle, str(folder)]
            else:
                module = "benchmarks.contestants.timm_inference"
                command = [sys.executable, "-m", module, bundle, str(folder), *TIMM[name], str(scratch / "logits.npy")]
            _, seconds, _, output = run(command)
            measured.setdefault(name, []).append(count / seconds)
            if name != OURS:
                measured.setdefault(f"{name}, its loop alone", []).append(count / json.loads(output))
            print(f"round {number + 1}  {name}  {count / seconds:.1f}/s", file=sys.stderr)
    return measured


def agreement(base: str, bundle: str, folder: Path, scratch: Path) -> str:
    """Compare the base install's logits with those of timm and torch."""
    ours, theirs = scratch / "ours.npy", scratch / "theirs.npy"
    for python, module, arguments in (
        (base, "predict_logits", [str(ours)]),
        (sys.executable, "timm_inference", [*TIMM["timm, no workers"], str(theirs)]),
    ):
        run([python, "-m", f"benchmarks.contestants.{module}", bundle, str(folder), *arguments])
    one, two = np.load(ours), np.load(theirs)
    same, difference = (one.argmax(1) == two.argmax(1)).mean(), np.abs(one - two).max()
    return f"{len(one)} images: the same likeliest class for {same:.2%}, logits differ by {difference:.1e} at most"


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default=sys.executable, help="an interpreter with the base install")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="images to predict (default: %(default)s)")
    parser.add_argument("--many", type=int, default=MANY, help="paths for the peak of memory (default: %(default)s)")
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*") if path.is_file() and path.suffix != ".tsv")
    bundle = str(Path(args.bundle).absolute())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = link(paths, scratch / "some", args.count)
        times = first_answers(args.base, bundle, paths[0], 2 * args.rounds)
        print(f"first answer: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})\n")
        measured = rates(args.base, bundle, folder, scratch, args.rounds)
        reference = statistics.median(measured[OURS])
        rows = [["", "images/s", "range", f"{OURS} is faster by"]]
        for each, figures in measured.items():
            median = statistics.median(figures)
            span = f"{min(figures):.1f} to {max(figures):.1f}"
            rows.append([each, f"{median:.1f}", span, f"{reference / median:.2f}"])
        print(text_table(rows), "\n")
        print(agreement(args.base, bundle, folder, scratch), "\n")
        for count in sorted({args.count, args.many}):
            crowd = link(paths, scratch / f"crowd{count}", count)
            _, seconds, peak, _ = run([args.base, "-m", "headstart", "predict", bundle, str(crowd)])
            print(f"{count:,} paths: {peak:.0f} MB at most, {count / seconds:.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
