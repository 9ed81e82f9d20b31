"""Writes a model as a bundle: every format of it, each through the gate, with what it says of its answers."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.data.dataset import PreparedDataset, evenly
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.sources import Source
from headstart.export.formats import (
    Function,
    load_program,
    onnx_model,
    traced,
    write_fp16,
    write_int8,
    write_onnx,
    write_program,
)
from headstart.export.model_card import ModelCardInfo, licence_notes, model_card
from headstart.export.parity import BATCH, ParityChecker, compare_preparation
from headstart.inference import bundle
from headstart.inference.bundle_config import FORMAT
from headstart.models.backbone import WithFeatures, get_head, input_config
from headstart.models.timm_checkpoint import load_timm, save_timm

CALIBRATION = 128
"""Training images by which the ranges of 8-bit activations are measured, at most."""

Calibration = tuple[dict[str, Any], NDArray[np.float32]]
"""What is told of how sure the model is, and the features of training images: as ``ground.reference`` has them."""

logger = logging.getLogger(__name__)


def write_bundle(
    folder: Path,
    model: nn.Module,
    prepared: PreparedDataset,
    source: Source,
    params: Params,
    *,
    told: ModelCardInfo,
    sure: Calibration | None,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Write a bundle, once its images were shown to come out the same from their files on.

    Args:
        folder: an empty one, which is not looked at where this fails.
        model: in evaluation mode, on the CPU.
        prepared: the images that it was trained on.
        source: where they came from.
        params: the section ``export`` is used, and ``run``.
        told: what its card says; its ``formats`` are filled in here.
        sure: of this very model; None where nobody has measured it.

    Returns:
        What the gate has found, by format, and ``compare_preparation``.

    Raises:
        UserError: a format does not answer as the model does, or images are prepared otherwise.
    """
    gate = ParityChecker(model, prepared, params.export, params.run)
    preparation = compare_preparation(source, prepared, gate.rows)
    formats = {}
    for name, function in _written(folder, model, prepared, params.export.formats):
        formats[name] = gate.check(name, function)
        logger.info("export: %s: logits differ by %.1e at most", name, formats[name]["max_difference"])
    about: dict[str, Any] = {
        "format": FORMAT,
        "input": prepared.input,
        "features": get_head(model).in_features,
    }
    about |= {"temperature": None, "conformal": [], "out_of_distribution": None}
    if sure is not None:
        about |= sure[0]
        np.save(folder / bundle.REFERENCE, sure[1])
    config = read_json(folder / paths.MODEL_CONFIG) | {"headstart": about}
    write_json(folder / paths.MODEL_CONFIG, config)
    told = replace(told, formats=formats)
    (folder / bundle.CARD).write_text(model_card(config, told), encoding="utf-8")
    (folder / bundle.LICENSE).write_text(licence_notes(config, told), encoding="utf-8")
    bundle.write_manifest(folder)
    return formats, preparation


def _written(
    folder: Path, model: nn.Module, prepared: PreparedDataset, formats: Sequence[str]
) -> Iterator[tuple[str, Function]]:
    """Write one format after the other; give its name, and what was written as a function."""
    save_timm(model, model.state_dict(), prepared, folder)
    reloaded = load_timm(folder)
    check_config(folder / paths.MODEL_CONFIG, reloaded, prepared)
    yield "timm", WithFeatures(reloaded)
    if not formats:
        return
    program = traced(model, tuple(prepared.input["input_size"]))
    if "pt2" in formats:
        write_program(program, folder / bundle.EXPORTED_PROGRAM)
        yield "pt2", load_program(folder / bundle.EXPORTED_PROGRAM)
    if "onnx" in formats:
        whole = folder / bundle.ONNX
        about = json.dumps({"label_names": prepared.classes, "input": prepared.input})
        write_onnx(program, whole, {"headstart": about})
        yield "onnx", onnx_model(whole)
    if "onnx_fp16" in formats:
        write_fp16(whole, folder / bundle.ONNX_FP16)
        yield "onnx_fp16", onnx_model(folder / bundle.ONNX_FP16)
    if "onnx_int8" in formats:
        write_int8(whole, folder / bundle.ONNX_INT8, _training_batches(prepared))
        yield "onnx_int8", onnx_model(folder / bundle.ONNX_INT8)


def _training_batches(prepared: PreparedDataset) -> Iterator[NDArray[np.float32]]:
    """Return training images, evenly over the manifest, as the model reads them."""
    some, normalize = evenly(prepared.rows("train"), CALIBRATION), Normalize(prepared.input)
    for start in range(0, len(some), BATCH):
        yield normalize(evaluation_pixels(prepared, some[start : start + BATCH])).contiguous().numpy()


def check_config(path: Path, model: nn.Module, prepared: PreparedDataset) -> None:
    """Raise UserError where ``config.json`` names other classes or another preparation than data/prepared has.

    Logits of prepared images would not show either.
    """
    written = {**input_config(model), "label_names": read_json(path).get("label_names")}
    for key, value in {**prepared.input, "label_names": prepared.classes}.items():
        if written.get(key) != value:
            raise UserError(
                f"{path}: {key} is {written.get(key)}, but data/prepared has {value}; "
                "nothing was exported. Run `dvc repro -f finetune`"
            )
