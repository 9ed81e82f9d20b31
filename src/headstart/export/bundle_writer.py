"""Writes a model as a bundle: every format after its parity check, the calibration, and the model card."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.io import atomic_write, read_json, write_json
from headstart.core.paths import MODEL_CONFIG
from headstart.data.dataset import SPLITS, PreparedDataset, evenly
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.sources import Source
from headstart.export.formats import ModelFunction, load_program, onnx_model, traced, write_fp16, write_int8, write_onnx
from headstart.export.model_card import ModelCardInfo, licence_notes, model_card
from headstart.export.parity import PARITY_BATCH, ParityChecker, compare_preprocessing
from headstart.inference import bundle
from headstart.inference.bundle_config import FORMAT
from headstart.models.backbone import WithFeatures, get_head, input_config
from headstart.models.timm_checkpoint import load_timm, save_timm

RANGE_IMAGES = 128
"""Training images on which the ranges of 8-bit activations are measured, at most."""

logger = logging.getLogger(__name__)


def write_bundle(
    folder: Path,
    model: nn.Module,
    prepared: PreparedDataset,
    source: Source,
    params: Params,
    *,
    info: ModelCardInfo,
    calibration: tuple[dict[str, Any], NDArray[np.float32]] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Write a bundle, once the images were compared in every preprocessing.

    Args:
        folder: takes its name when all formats agree; one that is there already is replaced.
        model: in evaluation mode, on the CPU.
        prepared: the images that it was trained on.
        source: of the same images, as files.
        params: the sections ``export`` and ``run`` are used.
        info: of the model, for its card.
        calibration: of this very model, as ``read_ood_reference`` returns it; None where it was not measured.

    Returns:
        The figures of the parity check by format, and those of ``compare_preprocessing``.

    Raises:
        UserError: a format computes something else than the model, or images are preprocessed otherwise.
    """
    checker = ParityChecker(model, prepared, params.export, params.run)
    preprocessing = compare_preprocessing(source, prepared, checker.rows)
    formats = {}
    with atomic_write(folder) as partial:
        partial.mkdir()
        for name, function in _written_formats(partial, model, prepared, params.export.formats):
            formats[name] = checker.check(name, function)
            logger.info("export: %s: logits differ by %.1e at most", name, formats[name]["max_difference"])
        entries: dict[str, Any] = {"format": FORMAT, "input": prepared.input, "features": get_head(model).in_features}
        entries |= {"temperature": None, "conformal": [], "out_of_distribution": None}
        if calibration is not None:
            entries |= calibration[0]
            np.save(partial / bundle.REFERENCE, calibration[1])
        config = read_json(partial / MODEL_CONFIG) | {"headstart": entries}
        write_json(partial / MODEL_CONFIG, config)
        images: dict[str, int] = {split: len(prepared.rows(split)) for split in SPLITS}
        card = model_card(config, info, params.export, images, formats)
        (partial / bundle.CARD).write_text(card, encoding="utf-8")
        (partial / bundle.LICENSE).write_text(licence_notes(config, params.export), encoding="utf-8")
        bundle.write_manifest(partial)
    return formats, preprocessing


def _written_formats(
    folder: Path, model: nn.Module, prepared: PreparedDataset, formats: Sequence[str]
) -> Iterator[tuple[str, ModelFunction]]:
    """Write one format after the other; yield its name and the function that its file computes."""
    save_timm(model, model.state_dict(), prepared, folder)
    reloaded = load_timm(folder)
    check_config(folder / MODEL_CONFIG, reloaded, prepared)
    yield "timm", WithFeatures(reloaded)
    if not formats:
        return
    program = traced(model, tuple(prepared.input["input_size"]))
    if "pt2" in formats:
        torch.export.save(program, folder / bundle.EXPORTED_PROGRAM)
        yield "pt2", load_program(folder / bundle.EXPORTED_PROGRAM)
    if "onnx" in formats:
        metadata = json.dumps({"label_names": prepared.classes, "input": prepared.input})
        write_onnx(program, folder / bundle.ONNX, {"headstart": metadata})
        yield "onnx", onnx_model(folder / bundle.ONNX)
    if "onnx_fp16" in formats:
        write_fp16(folder / bundle.ONNX, folder / bundle.ONNX_FP16)
        yield "onnx_fp16", onnx_model(folder / bundle.ONNX_FP16)
    if "onnx_int8" in formats:
        write_int8(folder / bundle.ONNX, folder / bundle.ONNX_INT8, _range_batches(prepared))
        yield "onnx_int8", onnx_model(folder / bundle.ONNX_INT8)


def _range_batches(prepared: PreparedDataset) -> Iterator[NDArray[np.float32]]:
    """Yield batches of training images, evenly over the manifest, as the model's input."""
    rows, normalize = evenly(prepared.rows("train"), RANGE_IMAGES), Normalize(prepared.input)
    for start in range(0, len(rows), PARITY_BATCH):
        yield normalize(evaluation_pixels(prepared, rows[start : start + PARITY_BATCH])).contiguous().numpy()


def check_config(path: Path, model: nn.Module, prepared: PreparedDataset) -> None:
    """Raise UserError where ``config.json`` has other classes or another preprocessing than data/prepared.

    The logits of prepared images would show neither.
    """
    written = {**input_config(model), "label_names": read_json(path).get("label_names")}
    for key, value in {**prepared.input, "label_names": prepared.classes}.items():
        if written.get(key) != value:
            raise UserError(
                f"{path}: {key} is {written.get(key)}, but data/prepared has {value}; "
                "nothing was exported. Run `dvc repro -f finetune`"
            )
