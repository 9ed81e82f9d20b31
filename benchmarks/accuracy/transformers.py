"""Hugging Face's example of image classification, with the settings of its README.

https://github.com/huggingface/transformers/tree/main/examples/pytorch/image-classification:
``run_image_classification.py --learning_rate 2e-5 --per_device_train_batch_size 8 --evaluation_strategy epoch
--save_strategy epoch --load_best_model_at_end True --save_total_limit 3``; the example's transforms for a timm model
are the image processor's own. These are the script's lines that these settings run, with predictions for the test.
"""

from typing import Any

import torch
from datasets import load_dataset
from scipy.special import softmax
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.accuracy.job import Answers, Job, names


def train(job: Job) -> Answers:
    """Train and predict with the Trainer."""
    set_seed(job.seed)
    data_files = {split: [str(path) for path in job.files(split)] for split in ("train", "val", "test")}
    images = load_dataset("imagefolder", data_files=data_files, cache_dir=f"{job.work}/cache")
    processor = AutoImageProcessor.from_pretrained(job.weights)
    classes = images["train"].features["label"].names
    model = AutoModelForImageClassification.from_pretrained(
        job.weights,
        num_labels=len(classes),
        label2id={name: i for i, name in enumerate(classes)},
        id2label=dict(enumerate(classes)),
        ignore_mismatched_sizes=True,
    )

    def transformed(transforms: Any) -> Any:
        def apply(examples: dict[str, Any]) -> dict[str, Any]:
            examples["pixel_values"] = [transforms(image.convert("RGB")) for image in examples["image"]]
            return examples

        return apply

    for split in data_files:
        images[split].set_transform(
            transformed(processor.train_transforms if split == "train" else processor.val_transforms)
        )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{job.work}/out",
            remove_unused_columns=False,
            learning_rate=2e-5,
            num_train_epochs=job.amount,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            logging_strategy="steps",
            logging_steps=10,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            save_total_limit=3,
            report_to="none",
            seed=job.seed,
        ),
        train_dataset=images["train"],
        eval_dataset=images["val"],
        data_collator=_collate,
    )
    trainer.train()
    logits = trainer.predict(images["test"]).predictions
    return Answers(names(job.files("test")), classes, softmax(logits, axis=1), job.amount)


def _collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}
