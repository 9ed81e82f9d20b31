"""What every model on the leaderboard says of the images that nothing was fitted to, and what it took."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import existing, read_json
from headstart.data.dataset import PreparedDataset, Split, evenly
from headstart.distributed.process_group import ProcessGroup
from headstart.evaluation.ood import REFERENCES
from headstart.features.cache import read_features
from headstart.features.extract import run_inference
from headstart.inference.scores import distances
from headstart.models.backbone import channels_last, features_of, get_head
from headstart.models.head import read_head
from headstart.probe.outputs import read_baselines


@dataclass(frozen=True)
class ModelPredictions:
    """One model's.

    Attributes:
        logits: float32 (n, classes) by split, or log-probabilities.
        val_accuracy: what it was chosen by.
        fit_seconds: of its training and the choice of its settings, summed over the processes that trained.
        seconds: of its own work on the last of the splits; the features of the frozen backbone are there already.
        distance: how far each image is from those that it was trained on, float32 (n,) by split; empty for what
            can't be exported.
        reference: the features of these, float32 (at most ``REFERENCES``, width), evenly over the manifest.
    """

    logits: dict[str, NDArray[np.float32]]
    val_accuracy: float
    fit_seconds: float
    seconds: float
    distance: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reference: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))


def probe_predictions(prepared: PreparedDataset, splits: Sequence[Split]) -> dict[str, ModelPredictions]:
    """Apply the probe's head to the cached features, and read what the baselines said; the last split is timed."""
    probe, head = read_json(paths.report_of("probe")), read_head()
    reference = read_features(_reference_rows(prepared))
    logits, distance, seconds = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]](), 0.0
    for split in splits:
        began = time.perf_counter()
        features = read_features(prepared.rows(split))
        logits[split] = head.logits(features)
        seconds = time.perf_counter() - began
        parts = np.array_split(features, 1 + len(features) // len(reference))  # a part's cosines are in memory at once
        distance[split] = np.concatenate([distances(part, reference) for part in parts])
    about = probe["val_accuracy"], probe["fit_seconds"], round(seconds, 3)
    found = {"probe": ModelPredictions(logits, *about, distance, reference)}
    baselines = {split: read_baselines(prepared.rows(split)) for split in splits}
    for name, about in probe["heads"].items():
        own = {str(split): baselines[split][name] for split in splits}
        found[name] = ModelPredictions(own, about["val_accuracy"], about["fit_seconds"], about["predict_seconds"])
    return found


def finetune_predictions(
    prepared: PreparedDataset, splits: Sequence[Split], params: Params, process_group: ProcessGroup
) -> ModelPredictions:
    """Apply the fine-tuned model to the images, on all ranks; the last split is timed."""
    model: nn.Module = timm.create_model(f"local-dir:{existing(paths.FINETUNE)}", pretrained=True)
    model = channels_last(model.eval().to(process_group.device))
    head = get_head(model)

    def both(pixels: Tensor) -> Tensor:
        features = features_of(model, pixels)
        return torch.cat([features, head(features)], dim=1)

    def batches(rows: NDArray[np.int64], label: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        size = params.evaluate.batch_size
        for batch in run_inference(
            both, prepared, rows, batch_size=size, run=params.run, process_group=process_group, label=label
        ):
            yield batch[:, : head.in_features], batch[:, head.in_features :].copy()

    some = _reference_rows(prepared)
    reference = np.concatenate([features for features, _ in batches(some, "evaluate, train")])
    logits, distance, seconds = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]](), 0.0
    for split in splits:
        began = time.perf_counter()
        found = [
            (outputs, distances(features, reference))
            for features, outputs in batches(prepared.rows(split), f"evaluate, {split}")
        ]
        logits[split], distance[split] = (np.concatenate(each) for each in zip(*found, strict=True))
        seconds = time.perf_counter() - began
    report = read_json(paths.report_of("finetune"))
    fit_seconds = round(report["training_seconds"] * report["processes"], 2)
    return ModelPredictions(logits, report["val_accuracy"], fit_seconds, round(seconds, 3), distance, reference)


def _reference_rows(prepared: PreparedDataset) -> NDArray[np.int64]:
    return evenly(prepared.rows("train"), REFERENCES)
