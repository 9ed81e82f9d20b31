"""Seconds of prepare and features on several ranks of this machine, and on nodes of one core of a real Slurm.

    python -m benchmarks.sharing [--count 6000] [--pictures FOLDER] [--rounds 3] [--nodes-only]

The ranks of the first table have all of this machine's cores between them, started by torchrun; a node of the second
is a slurmd of the Slurm that the tests start (Debian's slurm-wlm, as root), with one task of one core. Each run starts
from nothing, and its bytes are compared with those of the first. The rates are those that the stage itself reports: of
packing alone, and of the whole stage without the start of Python; that of features is of computing them.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import joblib
from ruamel.yaml import YAML

from benchmarks.__main__ import LARGE
from benchmarks.images import make_images
from benchmarks.machine import ROOT
from headstart.core.paths import FEATURES, PREPARED
from headstart.core.text import text_table

sys.path.insert(0, str(ROOT / "tests"))
from helpers.slurm_cluster import SlurmCluster, why_no_cluster

STAGES = ("prepare", "features")
MODEL = "mobilenetv3_small_100"
Start = Callable[[str, Path], None]


def write_project(folder: Path, images: Path) -> None:
    """Write a project's params.yaml: pixels, a backbone without weights, everything cached in the folder."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["prepare"] |= {"source": "imagefolder", "path": str(images), "store": "raw"}
    content["backbone"] |= {"name": MODEL, "pretrained": False, "image_size": 128}
    content["run"] |= {"tracking": "disabled", "cache": "cache"}
    folder.mkdir()
    YAML().dump(content, folder / "params.yaml")


def by_torchrun(ranks: int) -> Start:
    """Return a function that runs a stage on so many ranks of this machine."""

    def start(stage: str, folder: Path) -> None:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        # torchrun would set 1, for a single rank too.
        environment = {**os.environ, "OMP_NUM_THREADS": str(joblib.cpu_count())}
        command = [sys.executable, *command, sys.executable, "-m", "headstart", stage]
        subprocess.run(command, cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)

    return start


def by_srun(cluster: SlurmCluster, nodes: int) -> Start:
    """Return a function that runs a stage on so many nodes, one task of one core each."""

    def start(stage: str, folder: Path) -> None:
        options = [f"--nodes={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=7000"]
        command = f"srun --mpi=none --cpus-per-task=1 --kill-on-bad-exit=1 {sys.executable} -m headstart {stage}"
        job = cluster.submit(*options, f"--wrap={command}", cwd=folder, environment={})
        state = cluster.wait_for(job, seconds=900)["JobState"]
        assert state == "COMPLETED", (folder / f"slurm-{job}.out").read_text()

    return start


def measure(start: Start, images: Path) -> tuple[dict[str, float], str]:
    """Run the stages from nothing; return images a second of each, and a hash of what they wrote."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "project"
        write_project(folder, images)
        rates: dict[str, float] = {}
        for stage in STAGES:
            start(stage, folder)
            report: dict[str, Any] = json.loads((folder / f"reports/{stage}.json").read_text())
            rates[stage] = report["images_per_second"]
            if stage == "prepare":
                rates["prepare, all of it"] = report["pictures"] / report["seconds"]
        written = [path for name in (PREPARED, FEATURES) for path in sorted((folder / name).iterdir())]
        content = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in written]
        return rates, hashlib.sha256(repr(content).encode()).hexdigest()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000, help="training images")
    parser.add_argument("--pictures", type=Path, help="a folder with photographs, instead of invented ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes-only", action="store_true", help="without the first table")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "headstart-benchmarks")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    images = make_images(args.work.resolve(), args.pictures, args.count, LARGE)
    seen = set[str]()
    if not args.nodes_only:
        starts = {str(ranks): by_torchrun(ranks) for ranks in (1, 2, 4)}
        print_table(f"ranks, {joblib.cpu_count()} cores", starts, images, args.rounds, seen)
    if missing := why_no_cluster():
        print(missing)
    else:
        with tempfile.TemporaryDirectory() as root, SlurmCluster(Path(root), nodes=2) as cluster:
            starts = {str(nodes): by_srun(cluster, nodes) for nodes in (1, 2)}
            print_table("nodes of one core", starts, images, args.rounds, seen)
    print("the same bytes" if len(seen) == 1 else f"{len(seen)} results: bytes DIFFER")


def print_table(title: str, starts: dict[str, Start], images: Path, rounds: int, seen: set[str]) -> None:
    """Print the median rates of each way to start, as many times as the first one's, and collect what was written."""
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            measured, written = measure(start, images)
            rates[name].append(measured)
            seen.add(written)
    first = next(iter(rates))
    kinds = list(rates[first][0])
    middle = {name: {kind: median(each[kind] for each in of_name) for kind in kinds} for name, of_name in rates.items()}
    rows = [
        [name, *(f"{middle[name][kind]:,.0f} ({middle[name][kind] / middle[first][kind]:.2f})" for kind in kinds)]
        for name in rates
    ]
    print(text_table([[title, *(f"{kind}, images/s" for kind in kinds)], *rows]), flush=True)


if __name__ == "__main__":
    main()
