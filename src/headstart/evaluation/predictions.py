"""The predictions of every model on the leaderboard for the images of validation and test, and what they cost."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.blocks import Matrix, Rows, row_blocks, write_rows
from headstart.core.io import existing, read_json, write_table
from headstart.data.dataset import PreparedDataset, Split, evenly, read_groups, read_values
from headstart.distributed.process_group import ProcessGroup
from headstart.evaluation.bootstrap import LEVEL
from headstart.evaluation.ood import MAX_REFERENCE_IMAGES
from headstart.evaluation.significance import nll_difference
from headstart.features.cache import read_features
from headstart.features.extract import run_inference
from headstart.inference.scores import distances
from headstart.models.backbone import channels_last, features_of, get_head
from headstart.models.head import read_head
from headstart.probe.outputs import read_baseline
from headstart.targets.likelihood import correct_predictions

EVALUATED: tuple[Split, ...] = ("validation", "test")
"""The last one is timed."""
MAX_PLOTTED = 100_000
"""Test images, evenly spread, in the tables of confusion: DVC puts each line of them into its page."""

Outputs = Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Logits, float32 (some, classes), with the distances of the same images, float32 (some,)."""


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

    logits: Mapping[str, Matrix]
    val_accuracy: float
    fit_seconds: float
    seconds: float
    ood_distances: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reference_features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    remark: str = ""


def probe_predictions(prepared: PreparedDataset, folder: Path) -> dict[str, ModelPredictions]:
    """Apply the probe's head to the cached features, and read the baselines' outputs; its logits go into a folder."""
    probe, head = read_json(paths.report_of("probe")), read_head()
    reference = read_features(_reference_rows(prepared))
    logits, ood_distances, seconds = dict[str, Matrix](), dict[str, NDArray[np.float32]](), 0.0

    def outputs(rows: NDArray[np.int64]) -> Outputs:
        nonlocal seconds
        for block in row_blocks((len(rows), max(head.weight.shape))):
            began = time.perf_counter()
            features = read_features(rows[block])
            block_logits = head.logits(features)
            seconds += time.perf_counter() - began
            parts = np.array_split(features, 1 + len(features) // len(reference))  # one part's cosines are in memory
            yield block_logits, np.concatenate([distances(part, reference) for part in parts])

    for split in EVALUATED:
        seconds, rows = 0.0, prepared.rows(split)
        path, shape = folder / f"probe-{split}.npy", (len(rows), len(prepared.classes))
        logits[split], ood_distances[split] = _store(path, outputs(rows), shape)
    costs = probe["val_accuracy"], probe["fit_seconds"], round(seconds, 3)
    models = {"probe": ModelPredictions(logits, *costs, ood_distances, reference)}
    for name, figures in probe["heads"].items():
        of_head = {str(split): read_baseline(name, split) for split in EVALUATED}
        costs = figures["val_accuracy"], figures["fit_seconds"], figures["predict_seconds"]
        models[name] = ModelPredictions(of_head, *costs)
    return models


def finetune_predictions(
    prepared: PreparedDataset, params: Params, process_group: ProcessGroup, folder: Path
) -> dict[str, ModelPredictions]:
    """Apply the fine-tuned model to the images, on all ranks, and return its predictions on rank 0, as ``finetune``.

    Test-time augmentation is tried on validation: the mean of the probabilities of an image and of its mirror image.
    Where a paired test says that it helps, its predictions are there too, as ``finetune_tta``. Logits go into a folder.
    """
    model: nn.Module = timm.create_model(f"local-dir:{existing(paths.FINETUNE)}", pretrained=True)
    model = channels_last(model.eval().to(process_group.device))
    head = get_head(model)
    infer = partial(
        run_inference,
        prepared=prepared,
        batch_size=params.evaluate.batch_size,
        run=params.run,
        process_group=process_group,
    )

    def store(name: str, split: Split, outputs: Outputs) -> tuple[Matrix, NDArray[np.float32]]:
        if process_group.rank:
            list(outputs)  # takes part in the work; the outputs are on rank 0
            return np.empty((0, 0)), np.empty(0, np.float32)
        return _store(folder / f"{name}-{split}.npy", outputs, (len(prepared.rows(split)), len(prepared.classes)))

    reference_batches = list(
        infer(partial(features_of, model), rows=_reference_rows(prepared), label="evaluate, train")
    )
    reference = process_group.broadcast_from_rank_zero(lambda: np.concatenate(reference_batches))

    def logits_and_distances(pixels: Tensor) -> Tensor:
        features = features_of(model, pixels)
        away = torch.from_numpy(distances(features.float().cpu().numpy(), reference))
        return torch.cat([head(features).float().cpu(), away[:, None]], dim=1)

    logits, ood_distances, seconds = dict[str, Matrix](), dict[str, NDArray[np.float32]](), 0.0
    for split in EVALUATED:
        began = time.perf_counter()
        batches = infer(logits_and_distances, rows=prepared.rows(split), label=f"evaluate, {split}")
        outputs = ((batch[:, :-1], batch[:, -1].copy()) for batch in batches)
        logits[split], ood_distances[split] = store("finetune", split, outputs)
        seconds = time.perf_counter() - began
    report = read_json(paths.report_of("finetune"))
    fit_seconds = round(report["training_seconds"] * report["processes"], 2)
    costs = report["val_accuracy"], fit_seconds, round(seconds, 3)
    models = {"finetune": ModelPredictions(logits, *costs, ood_distances, reference)}

    def with_mirrored(split: Split) -> Matrix:
        def outputs() -> Outputs:
            done = 0
            label = f"evaluate, {split} in the mirror"
            for batch in infer(lambda pixels: model(pixels.flip(3)), rows=prepared.rows(split), label=label):
                pair = np.stack([logits[split][done : done + len(batch)], batch])
                done += len(batch)
                yield logsumexp(log_softmax(pair, axis=2), axis=0) - np.float32(np.log(2)), np.empty(0, np.float32)

        return store("finetune_tta", split, outputs())[0]

    validation, labels = with_mirrored("validation"), read_values("validation")
    lower, (low, high) = process_group.broadcast_from_rank_zero(
        lambda: nll_difference(validation, logits["validation"], labels, read_groups("validation"))
    )
    if low > 0:
        began = time.perf_counter()
        averaged = {"validation": validation, "test": with_mirrored("test")}
        seconds += time.perf_counter() - began
        if process_group.rank:
            return {}
        val_accuracy = float(correct_predictions(validation, labels).mean())
        remark = (
            "finetune_tta sees each image in the mirror too, for twice the time of inference: on validation its NLL is "
            f"{lower:.4f} lower ({100 * LEVEL:.0f} % interval {low:.4f} to {high:.4f}, each after its temperature)."
        )
        costs = val_accuracy, fit_seconds, round(seconds, 3)
        models["finetune_tta"] = ModelPredictions(averaged, *costs, remark=remark)
    return models


def _store(path: Path, outputs: Outputs, shape: tuple[int, int]) -> tuple[Rows, NDArray[np.float32]]:
    """Write logits of ``shape`` as they come; return them, to be read from the file, and the distances."""
    ood_distances: list[NDArray[np.float32]] = []

    def blocks() -> Iterator[NDArray[np.float32]]:
        for logits, of_block in outputs:
            ood_distances.append(of_block)
            yield logits

    return write_rows(path, blocks(), shape), np.concatenate(ood_distances)


def _reference_rows(prepared: PreparedDataset) -> NDArray[np.int64]:
    return evenly(prepared.rows("train"), MAX_REFERENCE_IMAGES)


def write_predictions(
    classes: Sequence[str],
    labels: NDArray[np.int64],
    models: Mapping[str, ModelPredictions],
    images: Iterable[Mapping[str, str]],
) -> None:
    """Write every test image's predictions, and the tables that DVC draws confusion matrices from.

    ``labels``, int64 (n,), and ``images``, rows of the manifest, are those of the test split.
    """
    columns = ["id", "source", "label", *(column for name in models for column in (name, f"{name}_probability"))]
    predicted = {name: np.empty(len(labels), np.int32) for name in paths.CONFUSION}

    def lines() -> Iterator[list[str]]:
        rows = iter(images)
        for block in row_blocks((len(labels), len(classes))):
            cells: list[Sequence[str]] = []
            for name, model in models.items():
                probabilities = softmax(model.logits["test"][block], axis=1)
                chosen = probabilities.argmax(1)
                if name in predicted:
                    predicted[name][block] = chosen
                cells += [[classes[i] for i in chosen], [f"{each:.6f}" for each in probabilities.max(1)]]
            for row, *of_models in zip(itertools.islice(rows, len(chosen)), *cells, strict=True):
                yield [row["id"], row["source"], row["label"], *of_models]

    write_table(paths.PREDICTIONS, columns, lines())
    for name, path in paths.CONFUSION.items():
        pairs = evenly(np.column_stack([labels, predicted[name]]), MAX_PLOTTED)
        write_table(path, ("actual", "predicted"), [(classes[label], classes[other]) for label, other in pairs])
