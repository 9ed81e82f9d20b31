"""Test accuracy and log-likelihood under budgets of wall clock, of Headstart and what users would take instead.

    python -m benchmarks accuracy --sets FOLDER... --peers DIR --work DIR

Each set is a folder of class folders. Headstart's own split of it, at its defaults, is written once as train/, val/ and
test/ of hard links, and every contestant gets these images, the same weights and the same cores. A run is one process,
timed from its start to its end: from the files on disk to the answers on the test images. A contestant without a time
limit gets the epochs that fit: two short runs, of 1 and 3 epochs, give the start-up and the seconds an epoch, and the
largest number of epochs whose total fits is taken. AutoGluon's limit is the budget less what a short run took beyond
its own. A run is never cut: one that took more than 5 % over its budget is marked.

Every run is a line of DIR/accuracy.jsonl. Started again, the program goes on with those that are missing or failed, and
makes DIR/accuracy.md and DIR/accuracy.svg of all that the file has.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from benchmarks.accuracy import results
from benchmarks.accuracy.job import ANSWERS, Job
from benchmarks.accuracy.results import Record
from benchmarks.machine import ROOT, describe, versions

MODEL = "tf_efficientnet_lite0"
RECORDS = "accuracy.jsonl"
HANGS = 3
"""A run that takes this many times the largest budget is ended."""


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        module: of ``benchmarks.accuracy``.
        function: of that module.
        environment: folder within ``--peers`` that has it installed; none: the one that runs this.
        rehearsals: amounts of the short runs: two numbers of epochs; one of seconds for a contestant with a time
            limit of its own; none for one that has no amount, or counts everything within its limit.
    """

    module: str
    function: str
    environment: str | None = None
    rehearsals: tuple[int, ...] = (1, 3)


CONTESTANTS = {
    "headstart": Contestant("headstart", "finetune"),
    "headstart tune": Contestant("headstart", "tune", rehearsals=()),
    "headstart probe": Contestant("headstart", "probe", rehearsals=()),
    "fastai": Contestant("fastai", "fine_tune", "torch"),
    "timm": Contestant("timm", "train", "torch"),
    "autogluon": Contestant("autogluon", "fit", "autogluon", rehearsals=(30,)),
    "lightly-train": Contestant("lightly_train", "train", "torch"),
    "transformers": Contestant("transformers", "train", "torch"),
}

Runner = Callable[[Contestant, Job], Record]


def main(arguments: Sequence[str]) -> None:
    """Run what is missing of the grid, then make its tables and pictures."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C, the run in progress ends too
    work, peers = args.work.resolve(), args.peers and args.peers.resolve()
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        sys.exit(f"error: --work: {work} is in use by another run of this program: wait for its end, or stop it")
    chosen = {name: CONTESTANTS[name] for name in args.contestants}
    sets = {folder.name: split_set(folder.resolve(), work / "sets" / folder.name) for folder in args.sets}
    weights = write_weights(work / f"weights-{args.size}", args.size)
    environments = sorted({each.environment for each in chosen.values() if each.environment})
    about = describe(sys.executable)
    about["versions"] = {"ours": about["versions"]["ours"]}
    about["versions"] |= {name: versions(str(_python(peers, name))) for name in environments}
    records = Records(work / RECORDS)
    records.add({"machine": about})
    job = Job("", str(weights), MODEL, args.size, 0, 0, str(work / "run"))
    limit = HANGS * 60 * max(args.budgets)
    # No hub: weights are given. matplotlib's list of fonts is shared: each run would make it anew in its own cache.
    os.environ |= {"HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(work / "matplotlib")}
    for each in chosen.values():  # once, so that the first run too has its imports compiled and in the disk's cache
        command = [str(_python(peers, each.environment)), "-c", f"import benchmarks.accuracy.{each.module}"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    for seed in args.seeds:
        for name, images in sets.items():
            for title, contestant in chosen.items():
                run = runner(_python(peers, contestant.environment), limit, work / "logs")
                for minutes in sorted(args.budgets):
                    key = {"set": name, "size": args.size, "contestant": title, "budget": minutes, "seed": seed}
                    fill(records, contestant, replace(job, images=str(images), seed=seed), key, run)
    results.write(records.all(), work)
    print((work / results.TABLE).read_text(encoding="utf-8"))


class Records:
    """The lines of a file, each written at once."""

    def __init__(self, path: Path) -> None:
        """Read those that are there; a line that a crash cut off is left out."""
        self.path, self._lines = path, list[Record]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                self._lines.append(json.loads(line))

    def all(self) -> list[Record]:
        """Return all."""
        return self._lines

    def add(self, record: Record) -> None:
        """Append a line."""
        self._lines.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(record)}")

    def find(self, key: Record) -> Record | None:
        """Return the last one with this key that did not fail."""
        found = [each for each in self._lines if key.items() <= each.items() and "error" not in each]
        return found[-1] if found else None


def fill(records: Records, contestant: Contestant, job: Job, key: Record, run: Runner) -> None:
    """Run one cell of the grid and what has to be rehearsed for it, unless it is there.

    ``key`` has the set, the size, the contestant, the budget in minutes and the seed.
    """
    if records.find(key):
        return
    seconds, shared, points = 60 * key["budget"], {name: key[name] for name in ("set", "size", "contestant")}, []
    for amount in contestant.rehearsals:
        rehearsal = shared | {"rehearsal": amount}
        found = records.find(rehearsal)
        if not found:
            _tell(f"{rehearsal}")
            found = rehearsal | run(contestant, replace(job, amount=amount, seed=0))
            records.add(found)
        if "error" in found:
            records.add(key | {"error": found["error"]})
            return
        points.append((amount, found["seconds"]))
    if len(points) > 1:  # a longer run says better what an epoch takes, unless it ended early
        points += [
            (each["amount"], each["seconds"])
            for each in records.all()
            if shared.items() <= each.items() and "amount" in each and each["amount"] == each.get("epochs")
        ]
    amount = fitting(points, seconds)
    if amount < 1:
        records.add(key | {"fits": False})
        return
    _tell(f"{key} amount {amount}")
    records.add(key | {"amount": amount} | run(contestant, replace(job, amount=amount)))


def fitting(rehearsed: Sequence[tuple[int, float]], budget: float) -> int:
    """Return the largest amount whose total fits into a budget in seconds.

    ``rehearsed`` are amounts with the seconds that the whole run took: numbers of epochs, from whose least and most
    follow the start-up and the seconds an epoch; or one in seconds, which are those beyond it; none: the budget is the
    amount.
    """
    if not rehearsed:
        return int(budget)
    (least, fewest), (most, longest) = min(rehearsed), max(rehearsed)
    each = (longest - fewest) / (most - least) if most > least else 1.0
    return math.floor((budget - (fewest - least * each)) / each)


def runner(python: Path, limit: float, logs: Path) -> Runner:
    """Return what runs a contestant in an interpreter, for ``limit`` seconds at most, and returns its figures.

    They are its error instead where it fails; what it printed is in the folder ``logs``.
    """

    def run(contestant: Contestant, job: Job) -> Record:
        work = Path(job.work)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        logs.mkdir(exist_ok=True)
        environment = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}  # nothing that another run has computed
        command = [str(python), "-m", "benchmarks.accuracy.job", contestant.module, contestant.function]
        log, began = logs / f"{contestant.module}-{time.strftime('%Y%m%d-%H%M%S')}.txt", time.perf_counter()
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, json.dumps(asdict(job))],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                process_group=0,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                return {"error": f"ended after {limit:.0f} s", "log": str(log)}
            finally:  # also stopped: what a run has started must not slow the next one down
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = round(time.perf_counter() - began, 2)
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            return {"error": last[:300], "log": str(log)}
        with np.load(work / ANSWERS) as answers:
            found = results.score(job.files("test"), *(answers[name] for name in ("files", "classes", "probabilities")))
            trained = int(answers["epochs"])
        shutil.rmtree(work)
        return {"seconds": seconds, **found, **({} if trained < 0 else {"epochs": trained})}

    return run


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _python(peers: Path | None, environment: str | None) -> Path:
    if environment is None:
        return Path(sys.executable)
    python = (peers or Path("peers")) / environment / "bin/python"
    if not python.exists():
        sys.exit(f"error: --peers: {python} is missing: make it by benchmarks/peers*.txt, or leave its contestants out")
    return python


def split_set(source: Path, target: Path) -> Path:
    """Write Headstart's split of a folder of classes as train/, val/ and test/ of links, unless it is there."""
    if target.exists():
        return target
    from headstart.config.loader import parse_params  # noqa: PLC0415  (imports torch, as the next ones do)
    from headstart.data.manifest import manifest_rows  # noqa: PLC0415
    from headstart.stages import prepare  # noqa: PLC0415

    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    changes = {"source": "imagefolder", "path": str(source), "on_bad_image": "skip"}
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        content = {"prepare": changes, "run": {"workers": 0}}  # workers would outlive the folder
        prepare.run(parse_params(content, partial=True).declared(prepare.PARAMS))
        for row in manifest_rows():
            folder = aside / {"validation": "val"}.get(row["split"], row["split"]) / row["label"]
            folder.mkdir(parents=True, exist_ok=True)
            # A name from the whole path, so that subfolders of a class can't collide.
            path, link = source / row["source"], folder / "_".join(Path(row["source"]).parts[1:])
            try:
                os.link(path, link)
            except OSError:  # on another disk
                link.symlink_to(path)
    aside.rename(target)
    return target


def write_weights(folder: Path, size: int) -> Path:
    """Write the pip package's weights in timm's ``local-dir`` format, for an input size, unless they are there."""
    if folder.exists():
        return folder
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from timm.models import save_for_hf  # noqa: PLC0415

    from headstart.models.pip_weights import read_weights  # noqa: PLC0415

    model = timm.create_model(MODEL)
    model.load_state_dict(read_weights(f"pip:{MODEL}"))
    aside = folder.with_name(f".{folder.name}")
    pretrained = {"input_size": (3, size, size)}
    save_for_hf(model, str(aside), model_config={"pretrained_cfg": pretrained}, safe_serialization=True)
    # Without ImageNet's head, which nobody keeps: AutoGluon loads these strictly into a model that has none.
    model.reset_classifier(0)  # type: ignore[operator]
    torch.save(model.state_dict(), aside / "pytorch_model.bin")
    config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
    config.pop("model_args")  # has the number of classes, which transformers then gives twice
    (aside / "config.json").write_text(json.dumps(config), encoding="utf-8")
    aside.rename(folder)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--sets", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of class folders")
    add("--budgets", type=float, nargs="+", default=[1, 2, 5, 10, 20], metavar="MINUTES", help="[1 2 5 10 20]")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME", help="[all]")
    add("--seeds", type=int, nargs="+", default=[0], help="[0]")
    add("--size", type=int, default=128, help="side of the model's input, in pixels [128]")
    add("--peers", type=Path, metavar="DIR", help="environments torch and autogluon, by benchmarks/peers*.txt")
    add("--work", type=Path, required=True, metavar="DIR", help="folder that is kept")
    return parser
