"""The predictions of every model on the leaderboard for the images of validation and test, and what they cost."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.blocks import Matrix, Rows, row_blocks, write_rows
from headstart.core.io import existing, read_json, table_rows, write_table
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
from headstart.models.timm_checkpoint import read_target
from headstart.probe.outputs import read_baseline
from headstart.targets.target import Target, Values

EVALUATED: tuple[Split, ...] = ("validation", "test")
"""The last one is timed."""
MAX_PLOTTED = 100_000
"""Test images, evenly spread, in the tables of confusion: DVC puts each line of them into its page."""

Outputs = Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Outputs, float32 (some, outputs), with the distances of the same images, float32 (some,)."""


@dataclass(frozen=True)
class ModelPredictions:
    """One model's predictions.

    Attributes:
        outputs: float32 (n, outputs) by split; of classes logits, or log-probabilities.
        val_figure: the measure that decides, on validation; NaN where it is not defined.
        fit_seconds: of its training and the choice of its settings, summed over the processes that trained.
        seconds: of its own inference on test; features of the frozen backbone are not counted.
        ood_distances: each image's distance to the reference images, float32 (n,) by split; empty for a model that
            cannot be exported.
        reference_features: of training images evenly spread over the manifest, float32 (at most
            ``MAX_REFERENCE_IMAGES``, width).
        target: that of the outputs.
        remark: why a variant of the fine-tuned model is offered beside it, for the verdict.
    """

    outputs: Mapping[str, Matrix]
    val_figure: float
    fit_seconds: float
    seconds: float
    ood_distances: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reference_features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    remark: str = ""
    target: Target = field(kw_only=True)


def probe_predictions(prepared: PreparedDataset, target: Target, folder: Path) -> dict[str, ModelPredictions]:
    """Apply the probe's head to the cached features, and read the baselines' outputs; its own go into a folder."""
    probe, head = read_json(paths.report_of("probe")), read_head()
    reference = read_features(_reference_rows(prepared))
    outputs, ood_distances, seconds = dict[str, Matrix](), dict[str, NDArray[np.float32]](), 0.0

    def infer(rows: NDArray[np.int64]) -> Outputs:
        nonlocal seconds
        for block in row_blocks((len(rows), max(head.weight.shape))):
            began = time.perf_counter()
            features = read_features(rows[block])
            block_outputs = head.logits(features)
            seconds += time.perf_counter() - began
            parts = np.array_split(features, 1 + len(features) // len(reference))  # one part's cosines are in memory
            yield block_outputs, np.concatenate([distances(part, reference) for part in parts])

    for split in EVALUATED:
        seconds, rows = 0.0, prepared.rows(split)
        path, shape = folder / f"probe-{split}.npy", (len(rows), target.outputs)
        outputs[split], ood_distances[split] = _store(path, infer(rows), shape)
    costs = _val_figure(probe, target), probe["fit_seconds"], round(seconds, 3)
    models = {"probe": ModelPredictions(outputs, *costs, ood_distances, reference, target=target)}
    for name, figures in probe["heads"].items():
        of_head = {str(split): read_baseline(name, split) for split in EVALUATED}
        costs = _val_figure(figures, target), figures["fit_seconds"], figures["predict_seconds"]
        models[name] = ModelPredictions(of_head, *costs, target=target)
    return models


def finetune_predictions(
    prepared: PreparedDataset, params: Params, process_group: ProcessGroup, folder: Path
) -> dict[str, ModelPredictions]:
    """Apply the fine-tuned model to the images, on all ranks, and return its predictions on rank 0, as ``finetune``.

    Test-time augmentation is tried on validation: the mean of the probabilities, or numbers, of an image and of its
    mirror image. Where a paired test says that it helps, its predictions are there too, as ``finetune_tta``. The
    outputs, whose target may be another than that of the images, go into a folder.
    """
    model: nn.Module = timm.create_model(f"local-dir:{existing(paths.FINETUNE)}", pretrained=True)
    model = channels_last(model.eval().to(process_group.device))
    head, target = get_head(model), read_target(paths.FINETUNE).ranked_within(params.evaluate.top_k)
    infer = partial(
        run_inference,
        prepared=prepared,
        batch_size=params.evaluate.batch_size,
        run=params.run,
        process_group=process_group,
    )

    def store(name: str, split: Split, found: Outputs) -> tuple[Matrix, NDArray[np.float32]]:
        if process_group.rank:
            list(found)  # takes part in the work; the outputs are on rank 0
            return np.empty((0, 0)), np.empty(0, np.float32)
        return _store(folder / f"{name}-{split}.npy", found, (len(prepared.rows(split)), target.outputs))

    reference_batches = list(
        infer(partial(features_of, model), rows=_reference_rows(prepared), label="evaluate, train")
    )
    reference = process_group.broadcast_from_rank_zero(lambda: np.concatenate(reference_batches))

    def outputs_and_distances(pixels: Tensor) -> Tensor:
        features = features_of(model, pixels)
        away = torch.from_numpy(distances(features.float().cpu().numpy(), reference))
        return torch.cat([head(features).float().cpu(), away[:, None]], dim=1)

    outputs, ood_distances, seconds = dict[str, Matrix](), dict[str, NDArray[np.float32]](), 0.0
    for split in EVALUATED:
        began = time.perf_counter()
        batches = infer(outputs_and_distances, rows=prepared.rows(split), label=f"evaluate, {split}")
        found = ((batch[:, :-1], batch[:, -1].copy()) for batch in batches)
        outputs[split], ood_distances[split] = store("finetune", split, found)
        seconds = time.perf_counter() - began
    report = read_json(paths.report_of("finetune"))
    fit_seconds = round(report["training_seconds"] * report["processes"], 2)
    costs = _val_figure(report, target), fit_seconds, round(seconds, 3)
    models = {"finetune": ModelPredictions(outputs, *costs, ood_distances, reference, target=target)}

    def with_mirrored(split: Split) -> Matrix:
        def averaged() -> Outputs:
            done = 0
            label = f"evaluate, {split} in the mirror"
            for batch in infer(lambda pixels: model(pixels.flip(3)), rows=prepared.rows(split), label=label):
                plain = outputs[split][done : done + len(batch)]
                done += len(batch)
                yield target.averaged(plain, batch), np.empty(0, np.float32)

        return store("finetune_tta", split, averaged())[0]

    validation, values = with_mirrored("validation"), read_values("validation")
    lower, (low, high) = process_group.broadcast_from_rank_zero(
        lambda: nll_difference(validation, outputs["validation"], values, read_groups("validation"), target)
    )
    if low > 0:
        began = time.perf_counter()
        of_both = {"validation": validation, "test": with_mirrored("test")}
        seconds += time.perf_counter() - began
        if process_group.rank:
            return {}
        remark = (
            "finetune_tta sees each image in the mirror too, for twice the time of inference: on validation its "
            f"{target.words.short_loss} is {lower:.4f} lower ({100 * LEVEL:.0f} % interval {low:.4f} to {high:.4f}"
            f"{', each after its temperature' if target.words.temperature else ''})."
        )
        # It is no rival, so how good it is on validation does not count.
        costs = np.nan, fit_seconds, round(seconds, 3)
        models["finetune_tta"] = ModelPredictions(of_both, *costs, remark=remark, target=target)
    return models


def _store(path: Path, outputs: Outputs, shape: tuple[int, int]) -> tuple[Rows, NDArray[np.float32]]:
    """Write outputs of ``shape`` as they come; return them, to be read from the file, and the distances."""
    ood_distances: list[NDArray[np.float32]] = []

    def blocks() -> Iterator[NDArray[np.float32]]:
        for block, of_block in outputs:
            ood_distances.append(of_block)
            yield block

    return write_rows(path, blocks(), shape), np.concatenate(ood_distances)


def _val_figure(report: Mapping[str, Any], target: Target) -> float:
    """Return the measure that decides, on validation, from a model's report; NaN where it is not defined."""
    figure = report[f"val_{next(iter(target.measures))}"]
    return np.nan if figure is None else float(figure)


def _reference_rows(prepared: PreparedDataset) -> NDArray[np.int64]:
    return evenly(prepared.rows("train"), MAX_REFERENCE_IMAGES)


def write_predictions(
    target: Target,
    values: Mapping[str, Values],
    models: Mapping[str, ModelPredictions],
    fitted: Mapping[str, Mapping[str, Any]],
    images: Iterable[Mapping[str, str]],
) -> None:
    """Write every test image's predictions, and the tables that DVC draws confusion matrices from.

    ``values`` are those of the images by split, ``fitted`` has what each model's target fitted on validation,
    ``images`` are rows of the manifest, of the test split.
    """
    columns = ["id", "source", "label", *(f"{name}{suffix}" for name in models for suffix in target.suffixes)]
    levels = {
        name: model.target.conformal(model.outputs["validation"], values["validation"])[0]
        for name, model in models.items()
    }

    def lines() -> Iterator[list[str]]:
        rows = iter(images)
        for block in row_blocks((len(values["test"]), len(target.names))):
            cells = [
                column
                for name, model in models.items()
                for column in model.target.cells(model.outputs["test"][block], fitted[name], levels[name])
            ]
            for row, *of_models in zip(itertools.islice(rows, len(cells[0])), *cells, strict=True):
                yield [row["id"], row["source"], target.shown(row["label"]), *of_models]

    write_table(paths.PREDICTIONS, columns, lines())
    plotted = np.zeros(len(values["test"]), bool)
    plotted[evenly(np.arange(len(plotted)), MAX_PLOTTED)] = True
    for name, path in paths.CONFUSION.items():
        rows = itertools.compress(table_rows(paths.PREDICTIONS), plotted)
        said = ((row["label"], [row[f"{name}{suffix}"] for suffix in target.suffixes]) for row in rows)
        write_table(path, ("actual", "predicted"), _confused(target, (target.pairs(*each) for each in said)))


def _confused(target: Target, pairs: Iterable[Sequence[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """Yield what is true and what was said of images, each image's ``pairs``, by names for the axes of a matrix.

    DVC sorts an axis by the letters of its names: where their order means something, they begin with their place.
    Of numbers a name is one of ten parts, with as many of the true numbers in each.
    """
    if target.discrete:
        in_order = not target.ordered or sorted(target.names) == list(target.names)
        digits = len(str(len(target.names) - 1))
        shown = {name: name if in_order else f"{i:0{digits}} {name}" for i, name in enumerate(target.names)}
        yield from ((shown.get(truth, truth), shown.get(said, said)) for of_image in pairs for truth, said in of_image)
        return
    for name, unit, of_number in zip(target.names, target.units, zip(*pairs, strict=True), strict=True):
        numbers = np.array([[float(each) for each in pair] for pair in of_number if pair[0]]).reshape(-1, 2)
        edges = np.unique(np.quantile(numbers[:, 0], np.arange(1, 10) / 10)) if len(numbers) else np.empty(0)
        ends = [f"{edge:.4g}" for edge in edges]
        bounds = [f"below {ends[0]}", *map(" to ".join, itertools.pairwise(ends)), f"from {ends[-1]}"] if ends else []
        before = f"{name} " if len(target.names) > 1 else ""
        shown_parts = [f"{before}{i}: {each} {unit}".strip() for i, each in enumerate(bounds)]
        for truth, said in np.searchsorted(edges, numbers, side="right").tolist():
            yield shown_parts[truth], shown_parts[said]
