"""Headstart's own stages, run as a user runs them, in a project's folder."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.contestants import lightning, plain
from benchmarks.task import HFLIP, LR, MOMENTUM, RATIO, SCALE, WEIGHT_DECAY, Task
from headstart.config.loader import load_params
from headstart.core import paths
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize
from headstart.distributed.process_group import ProcessGroup
from headstart.training.datamodule import FineTuneDataModule

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Batches:
    """The data module's training batches, normalised as the model's first step does."""

    loader: DataLoader[Any]
    normalize: Normalize
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels, *_ in self.loader:
            yield self.normalize(pixels.to(self.device)), labels.to(self.device)


def batches(task: Task) -> plain.Batches:
    """Return the data module's loader of a project in which ``prepare`` has run."""
    folder, device = project(task), torch.device(task.device)
    params, prepared = load_params(folder / "params.yaml"), PreparedDataset.open(folder / paths.PREPARED)
    run = params.run.model_copy(update={"workers": task.workers})
    images = FineTuneDataModule(prepared, params.finetune, run, ProcessGroup(device=device))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1)
    images.trainer = trainer
    return Batches(images.train_dataloader(), Normalize(prepared.input).to(device), device)


def train(task: Task) -> list[float]:
    """Run ``finetune`` from its start; return images/s of each epoch, from its history."""
    write_params(task)
    stage(task, "finetune")
    return _rates(task)


def train_bare_lightning(task: Task) -> list[float]:
    """Train bare Lightning on this data path, to tell the step's cost from the data path's."""
    return lightning.fit(task, batches(task))


def train_apart(task: Task) -> list[float]:
    """Run ``finetune`` in each process by itself at the same time, on its part of a batch; return sums of rates."""
    parts = [
        replace(task, work=f"{task.work}/apart-{i}", batch_size=task.batch_size // task.processes, processes=1)
        for i in range(task.processes)
    ]
    for part in parts:
        shutil.copytree(project(task), project(part), dirs_exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return [sum(rates) for rates in zip(*pool.map(train, parts), strict=True)]


def _rates(task: Task) -> list[float]:
    with (project(task) / "reports/finetune/history.csv").open(newline="") as file:
        epochs = [row for row in csv.DictReader(file) if row["epoch"] != "0"]
    assert len(epochs) == task.epochs
    return [task.count / float(row["train_seconds"]) for row in epochs]


def prepare(task: Task) -> list[float]:
    """Run ``prepare`` from nothing; return images/s of the whole stage, its imports left out."""
    make_project(task, "prepare", workers=task.workers)
    report = json.loads((project(task) / "reports/prepare.json").read_text())
    return [report["pictures"] / report["seconds"]]


def infer(task: Task) -> list[float]:
    """Run ``features`` without its cache; return images/s, from its report."""
    shutil.rmtree(project(task) / "cache", ignore_errors=True)
    stage(task, "features")
    return [json.loads((project(task) / "reports/features.json").read_text())["images_per_second"]]


def make_project(task: Task, *stages: str, workers: int | str = "auto") -> None:
    """Make a new project's folder and run some of its stages."""
    shutil.rmtree(project(task), ignore_errors=True)
    project(task).mkdir(parents=True)
    write_params(task, workers)
    for name in stages:
        stage(task, name)


def project(task: Task) -> Path:
    """Return the project's folder."""
    return Path(task.work) / "project"


def stage(task: Task, name: str) -> None:
    """Run a stage as dvc.yaml does, with this interpreter; its output is shown where it fails."""
    done = subprocess.run(
        ["sh", str(ROOT / "slurm/launch.sh"), name],  # noqa: S607  (the system's)
        cwd=project(task),
        env=os.environ | {"VIRTUAL_ENV": sys.prefix},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"headstart {name}: {done.stdout}{done.stderr}")


def write_params(task: Task, workers: int | str = "auto") -> None:
    """Write the repository's params.yaml with the task's values."""
    yaml = YAML()
    content = yaml.load(ROOT / "params.yaml")
    content["prepare"] |= {"source": "imagefolder", "path": task.images}
    content["backbone"] |= {"name": task.model, "pretrained": False, "image_size": task.size}
    content["probe"] |= {"l2": [1e-2], "heads": []}
    decay = {"kind": "l2", "backbone": WEIGHT_DECAY / 2, "head": WEIGHT_DECAY / 2}
    stopping = {"monitor": "val_loss", "patience": task.epochs, "min_delta": 0.0}
    content["finetune"] |= {
        "recipe": "full",
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "optimizer": "sgd",
        "momentum": MOMENTUM,
        "nesterov": True,
        "lr": {"backbone": LR, "head": LR},
        "l2": decay,
        "warmup_epochs": 0,
        "batch_norm": "train",
        "ema": None,
        "shuffle_windows": 1,
        "early_stopping": stopping,
        "precision": task.precision,
    }
    flips = {"hflip": HFLIP, "vflip": 0.0, "quarter_turn": 0.0}
    content["finetune"]["augment"] |= {"scale": list(SCALE), "ratio": list(RATIO), **flips}
    content["features"]["batch_size"] = task.batch_size
    where = {"devices": task.processes, "workers": workers, "accelerator": "gpu" if task.device == "cuda" else "cpu"}
    content["run"] |= {**where, "cache": "cache", "resume": False, "tracking": "disabled"}
    yaml.dump(content, project(task) / "params.yaml")
