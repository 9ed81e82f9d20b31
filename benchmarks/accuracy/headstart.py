"""Headstart as its README has it: a new project, its images named in params.yaml, the stages one after the other.

Only the images, the backbone, its image size, the epochs and the seed are set. Each stage is a process of its own, as
in `dvc repro`. The answers are those that `evaluate` starts from, without its report: as `headstart predict` gives
them, uncalibrated.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.accuracy.job import Answers, Job

ANSWER_SECONDS = 10
"""Of a search's budget, kept for the imports and the test images' answers that follow it."""


def finetune(job: Job) -> Answers:
    """Run the stages up to ``finetune``."""
    _make_project(job, epochs=job.amount)
    for stage in ("prepare", "features", "probe", "finetune"):
        _headstart(job, stage)
    return _answers("finetune", job)


def probe(job: Job) -> Answers:
    """Run the stages up to ``probe``."""
    _make_project(job)
    for stage in ("prepare", "features", "probe"):
        _headstart(job, stage)
    return _answers("probe", job)


def tune(job: Job) -> Answers:
    """Search with ``headstart tune``, which runs the stages itself, in what the budget leaves beside the answers."""
    began = time.perf_counter()
    _make_project(job)
    author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (("add", "--all"), (*author, "commit", "--quiet", "--message", "A project of headstart")):
        subprocess.run(["git", *command], cwd=_project(job), check=True)  # noqa: S607  (the system's)
    seconds = job.amount - ANSWER_SECONDS - (time.perf_counter() - began)
    _headstart(job, "tune", "--budget", f"{seconds:.0f}s")
    return _answers("finetune", job)


def _project(job: Job) -> Path:
    return Path(job.work) / "project"


def _headstart(job: Job, *arguments: str) -> None:
    folder = Path(job.work) if arguments[0] == "init" else _project(job)
    subprocess.run([sys.executable, "-m", "headstart", *arguments], cwd=folder, check=True)


def _make_project(job: Job, epochs: int | None = None) -> None:
    _headstart(job, "init", str(_project(job)), "--backbone", f"pip:{job.model}")
    yaml, path = YAML(), _project(job) / "params.yaml"
    content = yaml.load(path)
    content["prepare"] |= {"source": "imagefolder", "path": job.images}
    content["backbone"]["image_size"] = job.size
    content["finetune"]["seed"] = job.seed
    if epochs is not None:
        content["finetune"]["epochs"] = epochs
    yaml.dump(content, path)


def _answers(model: str, job: Job) -> Answers:
    """Compute the answers of the probe or of the fine-tuned model to the test images alone, from the prepared ones."""
    import numpy as np  # noqa: PLC0415  (after the stages, which would wait for these imports)
    import timm  # noqa: PLC0415
    from scipy.special import softmax  # noqa: PLC0415

    from headstart.config.loader import load_params  # noqa: PLC0415
    from headstart.core import paths  # noqa: PLC0415
    from headstart.core.io import read_table  # noqa: PLC0415
    from headstart.data.dataset import PreparedDataset  # noqa: PLC0415
    from headstart.data.manifest import manifest_rows  # noqa: PLC0415
    from headstart.distributed.connect import connect  # noqa: PLC0415
    from headstart.evaluation.predictions import probe_predictions  # noqa: PLC0415
    from headstart.features.extract import run_inference  # noqa: PLC0415

    os.chdir(_project(job))
    params, prepared = load_params(Path("params.yaml")), PreparedDataset.open()
    files = [row["source"].removeprefix("test/") for row in manifest_rows() if row["split"] == "test"]
    if model == "probe":
        with tempfile.TemporaryDirectory() as folder:
            logits = probe_predictions(prepared, prepared.target, Path(folder))["probe"].outputs["test"][:]
        epochs = None
    else:
        trained = timm.create_model(f"local-dir:{paths.FINETUNE}", pretrained=True).eval()
        options: Any = {"batch_size": params.evaluate.batch_size, "run": params.run, "label": "test"}
        batches = run_inference(trained, prepared, prepared.rows("test"), process_group=connect(params.run), **options)
        logits = np.concatenate(list(batches))
        epochs = int(read_table(paths.HISTORY)[-1]["epoch"])
    return Answers(files, prepared.classes, softmax(logits, axis=1), epochs)
