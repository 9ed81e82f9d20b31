"""Hugging Face's Trainer, as its example of image classification uses it.

The images are an image folder of ``datasets``, with torchvision's transforms set on it.
"""

import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torchvision import transforms
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.task import CLASSES, HFLIP, LR, MOMENTUM, RATIO, SCALE, WEIGHT_DECAY, Task


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes images/s of every epoch."""

    def __init__(self, task: Task) -> None:
        """Have no figures yet."""
        self.task, self._began = task, 0.0
        self.rates: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Note."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        self.rates.append(self.task.count / (time.perf_counter() - self._began))


def train(task: Task) -> list[float]:
    """Train as the example does."""
    crop = transforms.RandomResizedCrop(
        task.size, SCALE, RATIO, interpolation=transforms.InterpolationMode(task.interpolation)
    )
    steps = transforms.Compose(
        [crop, transforms.RandomHorizontalFlip(HFLIP), transforms.ToTensor(), transforms.Normalize(task.mean, task.std)]
    )

    def transformed(examples: dict[str, Any]) -> dict[str, Any]:
        examples["pixel_values"] = [steps(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    work = Path(task.work) / "transformers"
    folder = str(Path(task.images) / "train")
    images = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=str(work / "cache"))
    images.set_transform(transformed)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=task.model, num_labels=CLASSES))
    arguments = TrainingArguments(
        output_dir=str(work / "out"),
        remove_unused_columns=False,
        per_device_train_batch_size=task.batch_size,
        dataloader_drop_last=True,
        dataloader_num_workers=task.workers,
        num_train_epochs=task.epochs,
        learning_rate=LR,
        weight_decay=WEIGHT_DECAY,
        optim="sgd",
        optim_args=f"momentum={MOMENTUM},nesterov=True",
        max_grad_norm=0.0,
        bf16=task.precision == "bf16-mixed",
        use_cpu=task.device == "cpu",
        save_strategy="no",
        report_to="none",
    )
    clock = Clock(task)
    Trainer(model, arguments, train_dataset=images, data_collator=collate, callbacks=[clock]).train()
    return clock.rates
