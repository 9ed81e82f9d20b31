"""The predictions of every model on the leaderboard for the images of validation and test, and what they cost."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import existing, read_json, write_table
from headstart.data.dataset import PreparedDataset, Split, evenly, read_groups, read_labels
from headstart.distributed.process_group import ProcessGroup
from headstart.evaluation.bootstrap import LEVEL
from headstart.evaluation.ood import MAX_REFERENCE_IMAGES
from headstart.evaluation.significance import nll_difference
from headstart.features.cache import read_features
from headstart.features.extract import run_inference
from headstart.inference.scores import distances
from headstart.models.backbone import channels_last, features_of, get_head
from headstart.models.head import read_head
from headstart.probe.outputs import read_baselines

EVALUATED: tuple[Split, ...] = ("validation", "test")
"""The last one is timed."""


@dataclass(frozen=True)
class ModelPredictions:
    """One model's predictions.

    Attributes:
        logits: float32 (n, classes) by split, or log-probabilities.
        val_accuracy: its accuracy on validation.
        fit_seconds: of its training and the choice of its settings, summed over the processes that trained.
        seconds: of its own inference on test; features of the frozen backbone are not counted.
        ood_distances: each image's distance to the reference images, float32 (n,) by split; empty for a model that
            cannot be exported.
        reference_features: of training images evenly spread over the manifest, float32 (at most
            ``MAX_REFERENCE_IMAGES``, width).
        remark: why a variant of the fine-tuned model is offered beside it, for the verdict.
    """

    logits: dict[str, NDArray[np.float32]]
    val_accuracy: float
    fit_seconds: float
    seconds: float
    ood_distances: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reference_features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    remark: str = ""


def probe_predictions(prepared: PreparedDataset) -> dict[str, ModelPredictions]:
    """Apply the probe's head to the cached features, and read the baselines' outputs."""
    probe, head = read_json(paths.report_of("probe")), read_head()
    reference = read_features(_reference_rows(prepared))
    logits, ood_distances, seconds = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]](), 0.0
    for split in EVALUATED:
        began = time.perf_counter()
        features = read_features(prepared.rows(split))
        logits[split] = head.logits(features)
        seconds = time.perf_counter() - began
        blocks = np.array_split(features, 1 + len(features) // len(reference))  # one block's cosines are in memory
        ood_distances[split] = np.concatenate([distances(block, reference) for block in blocks])
    costs = probe["val_accuracy"], probe["fit_seconds"], round(seconds, 3)
    models = {"probe": ModelPredictions(logits, *costs, ood_distances, reference)}
    baselines = {split: read_baselines(prepared.rows(split)) for split in EVALUATED}
    for name, figures in probe["heads"].items():
        outputs = {str(split): baselines[split][name] for split in EVALUATED}
        costs = figures["val_accuracy"], figures["fit_seconds"], figures["predict_seconds"]
        models[name] = ModelPredictions(outputs, *costs)
    return models


def finetune_predictions(
    prepared: PreparedDataset, params: Params, process_group: ProcessGroup
) -> dict[str, ModelPredictions]:
    """Apply the fine-tuned model to the images, on all ranks, and return its predictions as ``finetune``.

    Test-time augmentation is tried on validation: the mean of the probabilities of an image and of its mirror image.
    Where a paired test says that it helps, its predictions are there too, as ``finetune_tta``.
    """
    model: nn.Module = timm.create_model(f"local-dir:{existing(paths.FINETUNE)}", pretrained=True)
    model = channels_last(model.eval().to(process_group.device))
    head = get_head(model)

    def features_and_logits(pixels: Tensor) -> Tensor:
        features = features_of(model, pixels)
        return torch.cat([features, head(features)], dim=1)

    infer = partial(
        run_inference,
        prepared=prepared,
        batch_size=params.evaluate.batch_size,
        run=params.run,
        process_group=process_group,
    )

    def batches(rows: NDArray[np.int64], label: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for batch in infer(features_and_logits, rows=rows, label=label):
            yield batch[:, : head.in_features], batch[:, head.in_features :].copy()

    reference = np.concatenate([each for each, _ in batches(_reference_rows(prepared), "evaluate, train")])
    logits, ood_distances, seconds = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]](), 0.0
    for split in EVALUATED:
        began = time.perf_counter()
        outputs = [
            (batch_logits, distances(features, reference))
            for features, batch_logits in batches(prepared.rows(split), f"evaluate, {split}")
        ]
        logits[split], ood_distances[split] = (np.concatenate(each) for each in zip(*outputs, strict=True))
        seconds = time.perf_counter() - began
    report = read_json(paths.report_of("finetune"))
    fit_seconds = round(report["training_seconds"] * report["processes"], 2)
    costs = report["val_accuracy"], fit_seconds, round(seconds, 3)
    models = {"finetune": ModelPredictions(logits, *costs, ood_distances, reference)}

    def with_mirrored(split: Split) -> NDArray[np.float32]:
        label = f"evaluate, {split} in the mirror"
        batches = infer(lambda pixels: model(pixels.flip(3)), rows=prepared.rows(split), label=label)
        pair = np.stack([logits[split], np.concatenate(list(batches))])
        mean: NDArray[np.float32] = logsumexp(log_softmax(pair, axis=2), axis=0) - np.float32(np.log(2))
        return mean

    validation, labels = with_mirrored("validation"), read_labels("validation")
    lower, (low, high) = nll_difference(validation, logits["validation"], labels, read_groups("validation"))
    if low > 0:
        began = time.perf_counter()
        averaged = {"validation": validation, "test": with_mirrored("test")}
        seconds += time.perf_counter() - began
        val_accuracy = float((validation.argmax(1) == labels).mean())
        remark = (
            "finetune_tta sees each image in the mirror too, for twice the time of inference: on validation its NLL is "
            f"{lower:.4f} lower ({100 * LEVEL:.0f} % interval {low:.4f} to {high:.4f}, each after its temperature)."
        )
        costs = val_accuracy, fit_seconds, round(seconds, 3)
        models["finetune_tta"] = ModelPredictions(averaged, *costs, remark=remark)
    return models


def _reference_rows(prepared: PreparedDataset) -> NDArray[np.int64]:
    return evenly(prepared.rows("train"), MAX_REFERENCE_IMAGES)


def write_predictions(
    classes: Sequence[str],
    labels: NDArray[np.int64],
    models: Mapping[str, ModelPredictions],
    images: Sequence[Mapping[str, str]],
) -> None:
    """Write every test image's predictions, and the tables that DVC draws confusion matrices from.

    ``labels``, int64 (n,), and ``images``, rows of the manifest, are those of the test split.
    """
    probabilities = {name: softmax(model.logits["test"], axis=1) for name, model in models.items()}
    predicted = {name: each.argmax(1) for name, each in probabilities.items()}
    columns = ["id", "source", "label", *(column for name in models for column in (name, f"{name}_probability"))]
    rows = (
        [row["id"], row["source"], row["label"]]
        + [value for name in models for value in (classes[predicted[name][i]], f"{probabilities[name][i].max():.6f}")]
        for i, row in enumerate(images)
    )
    write_table(paths.PREDICTIONS, columns, rows)
    for name, path in paths.CONFUSION.items():
        pairs = [(classes[label], classes[other]) for label, other in zip(labels, predicted[name], strict=True)]
        write_table(path, ("actual", "predicted"), pairs)
