"""A project with the real pipeline on invented images, for jobs of the tests' Slurm cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headstart.core.io import read_table
from headstart.core.paths import FINETUNE, HISTORY
from helpers.images import ROOT, SMALL_PROJECT, draw_brightness_classes, params
from helpers.slurm_cluster import ENDED, SlurmCluster

EPOCHS = 40
"""The early stop comes after this one."""
CHANGES = SMALL_PROJECT | {
    "finetune.recipe": "full",  # so that some epoch is better than the start
    "finetune.epochs": 2 * EPOCHS,
    "finetune.batch_size": 4,
    "finetune.batch_norm": "frozen",
    "finetune.lr": {"backbone": 1e-3, "head": 1e-3},
    "finetune.augment.hflip": 0.5,
    # No epoch is better than the first by so much.
    "finetune.early_stopping": {"monitor": "val_loss", "patience": EPOCHS - 1, "min_delta": 100.0},
    "evaluate.batch_size": 4,
    "evaluate.top_k": 2,
    "export.pictures": 4,
    "run.save_minutes": 0.01,
    "run.timeout_minutes": 0.5,
}
STAGES = ["prepare", "features", "probe", "finetune", "evaluate", "export"]
OPTIONS = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60"]
Result = tuple[bytes, list[dict[str, str]], dict[str, Any]]
Record = Callable[[str, object], None]


def true_project(folder: Path) -> Path:
    """Make a project of 20 images for each of three classes, which differ in brightness; return its folder."""
    draw_brightness_classes(folder / "data" / "raw", ("cat", "dog", "owl"))
    for name in ("dvc.yaml", "slurm", ".dvc/config", ".dvcignore", ".gitignore"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    YAML().dump(params(CHANGES).model_dump(), folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=folder, env=environment(), check=True)
    return folder


def before_finetune(done: Path, folder: Path) -> Path:
    """Copy a finished project without the results from finetune on, and without the doctor, which takes long."""
    later = shutil.ignore_patterns("runs", "finetune*", "evaluate*", "export*", "slurm-*.out", ".headstart")
    shutil.copytree(done, folder, ignore=later)
    lock = YAML().load(folder / "dvc.lock")
    for stage in STAGES[3:]:
        del lock["stages"][stage]
    YAML().dump(lock, folder / "dvc.lock")
    script = folder / "slurm" / "repro.sbatch"
    script.write_text(script.read_text().replace("sh slurm/launch.sh doctor", ": "))
    return folder


def environment() -> dict[str, str]:
    """Return the environment of the submitting shell, outside of any Slurm, with this Python's environment active."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    who = {f"GIT_{role}_{what}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return kept | who | {"VIRTUAL_ENV": sys.prefix, "PYTHONUNBUFFERED": "1"}


def result(project: Path) -> Result:
    """Return the weights, the history and the leaderboard, without measured times."""
    weights = (project / FINETUNE / "model.safetensors").read_bytes()
    history = [_untimed(row) for row in read_table(project / HISTORY)]
    report = json.loads((project / "reports" / "evaluate.json").read_text())
    report["models"] = {name: _untimed(figures) for name, figures in report["models"].items()}
    report["verdict"] = report["verdict"].partition(" of fitting")[0].rpartition(", for ")[0]
    return weights, history, report


def _untimed(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if "seconds" not in name}


class Job:
    """A job of ``slurm/repro.sbatch`` in a project."""

    def __init__(self, cluster: SlurmCluster, project: Path, *options: str, script: str = "slurm/repro.sbatch") -> None:
        self.cluster, self.project, self.start = cluster, project, time.monotonic()
        self.id = cluster.submit(*OPTIONS, *options, script, cwd=project, environment=environment())

    @property
    def output(self) -> str:
        """What all starts of it have printed."""
        path = self.project / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def until(self, printed: str, seconds: float = 90) -> "Job":
        """Wait until it has printed something."""
        end = time.monotonic() + seconds
        while printed not in self.output:
            record = self.cluster.job(self.id)
            assert record["JobState"] not in ENDED, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.1)
        return self

    def until_epoch(self, epoch: int) -> "Job":
        """Wait until it has printed an epoch's line."""
        return self.until(f"epoch {epoch:3d} of")

    def ended(self, record: Record, *states: str, seconds: float = 180) -> dict[str, str]:
        """Wait for its end, or the states, and record what Slurm shows."""
        found = self.cluster.wait_for(self.id, *states, seconds=seconds)
        taken = time.monotonic() - self.start
        code, restarts = found["ExitCode"], found["Restarts"]
        record("slurm", f"{found['JobState']}, exit code {code}, {restarts} restarts, {taken:.0f} s")
        return found

    def completes(self, record: Record, restarts: int, seconds: float = 180) -> None:
        """Wait until it is done, after so many restarts."""
        found = self.ended(record, seconds=seconds)
        assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("COMPLETED", "0:0", str(restarts)), (
            self.output
        )

    def stages_run(self) -> list[str]:
        """Return the stages that DVC ran, in order."""
        return re.findall(r"Running stage '(\w+)'", self.output)


def kill_rank(job: str, rank: int) -> None:
    """Kill a rank of a job's finetune, as the kernel does when memory runs out."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURM_STEP_ID=0"}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # it has ended
            continue
        if wanted <= set(variables) and {b"headstart", b"finetune"} <= set(command):
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise AssertionError(f"job {job} has no rank {rank}")
