"""timm's train.py with the settings of the one fine-tuning that its documentation shows.

https://huggingface.co/docs/timm/training_script: ``train.py --pretrained --batch-size 32 --epochs 30 --opt adamw
--lr 1e-4 --weight-decay 0.01`` (for photographs of plants). All else is train.py's default: a cosine after 5 epochs of
warm-up from 1e-5, crops from 8 % of the area, flips, colour jitter of 0.4, a random interpolation, label smoothing of
0.1, 4 workers; validation after each epoch, and the weights of the best top-1 are kept (``model_best``). Where fewer
than 10 epochs fit, half of them are warm-up, or the rate would never reach its peak.

timm's package has no train.py, so these are the lines of its ``main``, ``train_one_epoch`` and ``validate`` that these
settings run (timm 1.0).
"""

import copy
from typing import Any

import torch
from timm.data.config import resolve_data_config
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.random import random_seed
from torch import Tensor, nn

from benchmarks.accuracy.job import Answers, Job

BATCH_SIZE, LR, WEIGHT_DECAY = 32, 1e-4, 0.01
WARMUP_EPOCHS, WARMUP_LR, SMOOTHING, COLOR_JITTER, WORKERS = 5, 1e-5, 0.1, 0.4, 4


def train(job: Job) -> Answers:
    """Train as train.py does, answer as inference.py does from its ``model_best``."""
    random_seed(job.seed)  # type: ignore[no-untyped-call]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overlay = {"file": f"{job.weights}/pytorch_model.bin"}
    classes = len(job.classes)
    model = create_model(job.model, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay).to(device)
    size = {"input_size": (3, job.size, job.size)}
    config = resolve_data_config(size, model=model)  # type: ignore[no-untyped-call]
    training, validation, test = (_loader(job, split, config, device) for split in ("train", "val", "test"))
    optimizer = create_optimizer_v2(model, "adamw", LR, WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=job.amount,
        warmup_epochs=min(WARMUP_EPOCHS, job.amount // 2),
        warmup_lr=WARMUP_LR,
        min_lr=0.0,
        updates_per_epoch=len(training),
    )
    loss_fn = LabelSmoothingCrossEntropy(SMOOTHING)  # type: ignore[no-untyped-call]
    best, weights = -1.0, model.state_dict()
    for epoch in range(job.amount):
        model.train()
        for inputs, target in training:
            loss_fn(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        outputs, targets = _outputs(model, validation)
        top1 = (outputs.argmax(1) == targets).float().mean().item()
        if top1 > best:
            best, weights = top1, copy.deepcopy(model.state_dict())
        scheduler.step(epoch + 1, top1)
    model.load_state_dict(weights)
    outputs, _ = _outputs(model, test)
    files = [test.dataset.filename(i) for i in range(len(test.dataset))]
    numbers = test.dataset.reader.class_to_idx
    return Answers(files, sorted(numbers, key=numbers.__getitem__), outputs.softmax(1).numpy(), job.amount)


def _loader(job: Job, split: str, config: dict[str, Any], device: torch.device) -> Any:
    is_training = split == "train"
    return create_loader(
        create_dataset("", f"{job.images}/{split}", is_training=is_training),
        batch_size=BATCH_SIZE,
        is_training=is_training,
        color_jitter=COLOR_JITTER,
        num_workers=WORKERS,
        device=device,
        **(config | {"interpolation": "random"} if is_training else config),
    )


@torch.inference_mode()
def _outputs(model: nn.Module, loader: Any) -> tuple[Tensor, Tensor]:
    model.eval()
    found = [(model(inputs).cpu(), target.cpu()) for inputs, target in loader]
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])
