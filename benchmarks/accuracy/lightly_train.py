"""lightly-train's image classification, as its page of that name has it.

https://docs.lightly.ai/train/stable/image_classification.html: ``train_image_classification`` with folders of classes,
then ``load_model("exported_best.pt")`` and ``predict``. All is its default but the number of steps, the image size,
the backbone's weights, their mean and standard deviation, and the precision on CPUs that would emulate its bf16-mixed.

Version 0.18 can't train timm's EfficientNets: it reads their last but one layer, 320 wide, and makes a head for the
1,280 of the last. Here it reads the last, by its own function for models of timm that lack the first.
"""

import json
from pathlib import Path

import lightly_train
import numpy as np
import torch
from lightly_train._models.timm import timm

from benchmarks.accuracy.job import Answers, Job, names
from benchmarks.machine import bf16_native

BATCH_SIZE = 16
"""lightly-train's default for this task, by which steps are counted."""


def train(job: Job) -> Answers:
    """Train for as many steps as the epochs have, answer with the best validated weights."""
    timm._get_forward_features_fn = lambda model: timm._forward_features  # noqa: ARG005, SLF001  (see above)
    out, classes = Path(job.work) / "out", job.classes
    pretrained = json.loads((Path(job.weights) / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    lightly_train.train_image_classification(
        out=out,
        model=f"timm/{job.model}",
        data={
            "train": f"{job.images}/train",
            "val": f"{job.images}/val",
            "classes": dict(enumerate(classes)),
        },
        steps=job.amount * max(1, len(job.files("train")) // BATCH_SIZE),
        batch_size=BATCH_SIZE,
        seed=job.seed,
        precision="bf16-mixed" if torch.cuda.is_available() or bf16_native() else "32-true",
        model_args={"backbone_weights": f"{job.weights}/pytorch_model.bin"},
        transform_args={
            "image_size": (job.size, job.size),
            "normalize": {"mean": tuple(pretrained["mean"]), "std": tuple(pretrained["std"])},
        },
    )
    model = lightly_train.load_model(out / "exported_models/exported_best.pt")
    files = job.files("test")
    probabilities = np.zeros((len(files), len(classes)))
    for row, path in zip(probabilities, files, strict=True):
        found = model.predict(path, topk=len(classes))
        row[found["labels"].cpu().numpy()] = found["scores"].cpu().numpy()
    return Answers(names(files), classes, probabilities, job.amount)
