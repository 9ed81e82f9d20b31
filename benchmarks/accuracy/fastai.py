"""fastai's `fine_tune` with its defaults, on the loaders of its tutorial of vision.

https://docs.fast.ai/tutorial.vision.html: ``ImageDataLoaders`` with ``item_tfms=Resize(…)`` and
``batch_tfms=aug_transforms(size=…)``, ``vision_learner``, ``fine_tune``. Its defaults: batches of 64, base_lr 2e-3, one
frozen epoch, then as many as asked for with discriminative rates. It keeps the last epoch's weights. Images are first
resized to twice the model's input, as the tutorial's 460 px are to its 224.
"""

from pathlib import Path

import torch
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

from benchmarks.accuracy.job import Answers, Job, names


def fine_tune(job: Job) -> Answers:
    """Train with ``fine_tune``, answer with ``get_preds``."""
    set_seed(job.seed)
    images = ImageDataLoaders.from_folder(
        job.images,
        train="train",
        valid="val",
        item_tfms=Resize(job.size * 2),
        batch_tfms=aug_transforms(size=job.size),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    learner = vision_learner(
        images,
        job.model,
        pretrained_cfg_overlay={"file": f"{job.weights}/pytorch_model.bin"},
        path=Path(job.work),
    )
    learner.fine_tune(job.amount)
    files = job.files("test")
    probabilities, _ = learner.get_preds(dl=images.test_dl(files))
    return Answers(names(files), list(images.vocab), probabilities.numpy(), job.amount)
