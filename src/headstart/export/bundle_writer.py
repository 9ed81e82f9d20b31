"""Writes a model as a bundle: every format after its parity check, the calibration, and the model card."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.config.schema import Params
from headstart.core.errors import UserError, first_line
from headstart.core.io import atomic_write, read_json, write_json
from headstart.core.paths import MODEL_CONFIG
from headstart.core.storage import storage_errors, storage_message
from headstart.data.band_files import BandFiles
from headstart.data.dataset import SPLITS, PreparedDataset, evenly
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.source_item import Source
from headstart.export.formats import ModelFunction, load_program, onnx_model, traced, write_fp16, write_int8, write_onnx
from headstart.export.model_card import ModelCardInfo, licence_notes, model_card
from headstart.export.parity import PARITY_BATCH, ParityChecker, compare_preprocessing
from headstart.inference import bundle
from headstart.inference.bundle_config import FORMAT
from headstart.models.backbone import WithFeatures, get_head, input_config
from headstart.models.timm_checkpoint import TARGET, load_timm, read_target, save_timm
from headstart.targets.target import Target

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
    target: Target,
    info: ModelCardInfo,
    calibration: tuple[dict[str, Any], NDArray[np.float32]] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, Any], dict[str, str]]:
    """Write a bundle, once the images were compared in every preprocessing.

    Args:
        folder: takes its name when it is whole; one that is there already is replaced.
        model: in evaluation mode, on the CPU.
        prepared: the images that it was trained on.
        source: of the same images, as files.
        params: the sections ``export`` and ``run`` are used.
        target: of the model's outputs.
        info: of the model, for its card.
        calibration: of this very model, as ``read_ood_reference`` returns it; None where it was not measured.

    Returns:
        The figures of the parity check by format, those of ``compare_preprocessing``, and of each format that failed,
        and is not in the bundle, why.

    Raises:
        UserError: timm's format computes something else than the model, or images are preprocessed otherwise.
    """
    uncalibrated: dict[str, Any] = {"temperature": None, "conformal": [], "out_of_distribution": None}
    calibrated = uncalibrated if calibration is None else calibration[0]
    fitted = target.uncalibrated(None if calibration is None else calibrated)
    checker = ParityChecker(model, target, prepared, params.export, params.run, fitted=fitted)
    preprocessing = compare_preprocessing(source, prepared, checker.rows)
    formats = {}

    def check(name: str, function: ModelFunction) -> None:
        formats[name] = checker.check(name, function)
        logger.info("export: %s: logits differ by %.1e at most", name, formats[name]["max_difference"])

    with atomic_write(folder) as partial:
        partial.mkdir()
        save_timm(model, model.state_dict(), prepared, partial, target)
        reloaded = load_timm(partial)
        check_config(partial, reloaded, prepared)
        config = read_json(partial / MODEL_CONFIG)
        about = {"target": config.pop(TARGET)}
        check("timm", WithFeatures(reloaded))
        failed = write_formats(
            partial,
            model,
            tuple(prepared.input["input_size"]),
            params.export.formats,
            metadata={"headstart": json.dumps({"label_names": prepared.classes, "input": prepared.input, **about})},
            range_batches=_range_batches(prepared),
            check=check,
        )
        entries: dict[str, Any] = {"format": FORMAT, "input": prepared.input, "features": get_head(model).in_features}
        if isinstance(source, BandFiles):
            entries["band_files"] = source.patterns
        if calibration is not None:
            np.save(partial / bundle.REFERENCE, calibration[1])
        config |= {"headstart": entries | calibrated | about}
        write_json(partial / MODEL_CONFIG, config)
        images: dict[str, int] = {split: len(prepared.rows(split)) for split in SPLITS}
        card = model_card(config, target, fitted, info, params.export, images=images, formats=formats)
        (partial / bundle.CARD).write_text(card, encoding="utf-8")
        (partial / bundle.LICENSE).write_text(licence_notes(config, params.export), encoding="utf-8")
        bundle.write_manifest(partial)
    return formats, preprocessing, failed


def write_formats(
    folder: Path,
    model: nn.Module,
    input_size: tuple[int, int, int],
    formats: Sequence[str],
    *,
    metadata: dict[str, str],
    range_batches: Iterable[NDArray[np.float32]],
    check: Callable[[str, ModelFunction], Any],
) -> dict[str, str]:
    """Write a model, in evaluation mode and on the CPU, in each of ``export.formats``, and check it.

    Args:
        folder: where the files are written; of a format that fails none stays.
        model: a timm model with a head of its own.
        input_size: channels, height, width.
        formats: their names, ``onnx`` among them where one is made from it.
        metadata: for ``write_onnx``.
        range_batches: for ``write_int8``.
        check: is called with a format's name and the function that its file computes; raises UserError to reject it.

    Returns:
        Of each format that can't be had one line with its name and the reason.

    Raises:
        OSError: the disk is full or can't be written.
    """
    program, onnx, failed = cache(lambda: traced(model, input_size)), folder / bundle.ONNX, dict[str, str]()
    writers: dict[str, tuple[Path, Callable[[Path], None], Callable[[Path], ModelFunction]]] = {
        "pt2": (folder / bundle.EXPORTED_PROGRAM, lambda path: torch.export.save(program(), path), load_program),
        "onnx": (onnx, lambda path: write_onnx(program(), path, metadata), onnx_model),
        "onnx_fp16": (folder / bundle.ONNX_FP16, lambda path: write_fp16(onnx, path), onnx_model),
        "onnx_int8": (folder / bundle.ONNX_INT8, lambda path: write_int8(onnx, path, range_batches), onnx_model),
    }
    for name in (name for name in writers if name in formats):
        path, write, load = writers[name]
        if "onnx" in failed:
            failed[name] = f"{name}: is made from onnx"
            continue
        try:
            with storage_errors(path), _quiet():
                write(path)
            check(name, load(path))
        except Exception as error:
            if isinstance(error, OSError) and storage_message(error) is not None:
                raise
            reason: BaseException = error
            while reason.__cause__ is not None:  # the exporters' own messages are on how to report it to them
                reason = reason.__cause__
            failed[name] = f"{name}: this model can't be converted to it: {first_line(reason)}"
            if isinstance(error, UserError):
                failed[name] = str(error).removeprefix("export: ")
            for written in folder.glob(f"{path.name}*"):  # with its weights, where they are in a file of their own
                written.unlink()
    return failed


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, whose remarks are about their own steps; what they raise is told in one line."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def check_complete(folder: Path, written: Iterable[str], failed: Mapping[str, str]) -> None:
    """Raise UserError that names the formats that failed, a line each, and those that are in ``folder``."""
    if failed:
        lines = [f"  {reason}" for reason in failed.values()]
        head = f"export.formats: {folder} has {', '.join(written)}, but not {', '.join(failed)}:"
        raise UserError("\n".join([head, *lines, "Leave out what failed there, or choose another backbone.name"]))


def _range_batches(prepared: PreparedDataset) -> Iterator[NDArray[np.float32]]:
    """Yield batches of training images, evenly over the manifest, as the model's input."""
    rows, normalize = evenly(prepared.rows("train"), RANGE_IMAGES), Normalize(prepared.input)
    for start in range(0, len(rows), PARITY_BATCH):
        yield normalize(evaluation_pixels(prepared, rows[start : start + PARITY_BATCH])).contiguous().numpy()


def check_config(folder: Path, model: nn.Module, prepared: PreparedDataset) -> None:
    """Raise UserError where ``config.json`` has another target, other names or preprocessing than data/prepared.

    The logits of prepared images would show neither.
    """
    target = read_target(folder)
    written = {**input_config(model), "label_names": [*target.names], "target": target.kind}
    timms = {key: value for key, value in prepared.input.items() if key != "bands"}
    for key, value in {**timms, "label_names": prepared.classes, "target": prepared.target.kind}.items():
        if written.get(key) != value:
            raise UserError(
                f"{folder / MODEL_CONFIG}: {key} is {written.get(key)}, but data/prepared has {value}; "
                "nothing was exported. Run `dvc repro -f finetune`"
            )
