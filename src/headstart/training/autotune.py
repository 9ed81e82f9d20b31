"""Choices by speed, measured on a few training steps on this hardware: the precision, and whether to compile."""

import copy
import hashlib
import json
import logging
import platform
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import RunConfig
from headstart.core.errors import UserError, first_line
from headstart.core.io import read_json, write_json
from headstart.core.paths import cache_folder
from headstart.data.loader import Normalize
from headstart.distributed.process_group import device_of
from headstart.training.checkpoint import RunDir

logger = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

ROUNDS = 7
LARGEST_BATCH = 32
CLEARLY = 1.1
"""bf16 is chosen where its steps are this many times as fast."""
HOPELESS = 4
"""A step this many times as slow ends the measurement: on CPUs without native bf16 it takes up to 50 times as long."""
WORTH_MEASURING = 100
"""Steps of a training on a CPU below which the measurement takes as long as it can save."""
TRIAL_S, ROUNDS_S = 2.0, 2.0
"""Seconds that a measurement may take on a CPU: to find out how many images make a step, and for the rounds."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Processors with one of these compute in bf16 (x86, then ARM); the others convert each number."""


class TooSlowError(Exception):
    """A step of two images takes too long to be measured."""


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the hardware lacks, which Lightning would replace without asking.

    Raises:
        UserError: the message says what to use instead.
    """
    if precision == "16-mixed" and device.type != "cuda":
        raise UserError(
            "finetune.precision: 16-mixed needs a CUDA GPU, and none is used here; use auto, 32-true or bf16-mixed"
        )
    if precision == "bf16-mixed" and device.type == "cuda" and not _has_bf16(device):
        raise UserError("finetune.precision: this GPU has no bfloat16; use 16-mixed or 32-true")


def _has_bf16(device: torch.device) -> bool:
    """Return whether the device itself computes in bf16."""
    if device.type == "cpu":
        return bool(BF16_FLAGS.intersection(" ".join(_cpu_lines("flags", "Features")).split()))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precision_of_run(
    model: nn.Module,
    config: dict[str, Any],
    finetune: FinetuneConfig,
    run: RunConfig,
    run_dir: RunDir,
    *,
    most: int = LARGEST_BATCH,
    steps: int = WORTH_MEASURING,
) -> Precision:
    """Return ``finetune.precision``; for ``auto`` the faster one, which the run then keeps in ``run_dir``.

    At ``most`` so many images fit into memory; the training has so many ``steps``.

    Raises:
        UserError: the run began in a precision that the hardware here lacks.
    """
    if finetune.precision != "auto":
        return finetune.precision
    if run_dir.precision.exists():
        kept: dict[str, Precision] = read_json(run_dir.precision)
        check_precision(kept["precision"], device_of(run))
        logger.info("precision: %(precision)s, in which this fine-tuning began on %(host)s", kept)
        return kept["precision"]
    if steps < WORTH_MEASURING and device_of(run).type == "cpu":
        logger.info("precision: 32-true; %d steps are too few to measure what is faster", steps)
        chosen: Precision = "32-true"
    else:
        cache = cache_folder(run.cache) / "precision.json"
        chosen = _faster_precision(model, config, device_of(run), min(finetune.batch_size, most), cache)
    write_json(run_dir.precision, {"precision": chosen, "host": socket.gethostname()})
    return chosen


def _faster_precision(
    model: nn.Module, config: dict[str, Any], device: torch.device, batch_size: int, cache: Path
) -> Precision:
    """Measure steps in fp32 and bf16, unless ``cache`` has the figures for this hardware, model and size."""
    size = max(2, min(batch_size, LARGEST_BATCH))
    if not _has_bf16(device):
        logger.info("precision: 32-true; this %s does not compute in bf16 itself", device.type.upper())
        return "32-true"
    setup = [_hardware(device), torch.__version__, torch.get_num_threads(), config["input_size"], size, repr(model)]
    key = hashlib.sha256(json.dumps(setup).encode()).hexdigest()[:24]
    measured = read_json(cache) if cache.exists() else {}
    if key not in measured:
        ratio, kinds = 0.0, (False, True)
        logger.info("precision: measuring steps in fp32 and bf16, for at most %.0f s", TRIAL_S + ROUNDS_S)
        try:
            measured_size = affordable_size(copy.deepcopy(model), config, device, size, kinds)
        except TooSlowError:
            logger.info("precision: 32-true, since steps are too slow here to measure more")
            return "32-true"
        plain, bf16 = seconds_a_step(copy.deepcopy(model), config, device, measured_size, kinds)
        ratio = plain / bf16
        precision = "bf16-mixed" if ratio > CLEARLY else "32-true"
        measured[key] = {"precision": precision, "bf16_speed": round(ratio, 3)}
        write_json(cache, measured)
    logger.info("precision: %(precision)s; bf16 steps are %(bf16_speed).2f times as fast as fp32", measured[key])
    chosen: Precision = measured[key]["precision"]
    return chosen


def _hardware(device: torch.device) -> str:
    """Return the device's name; a CPU's with its features, since virtual ones share a name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} " + " ".join(sorted(set(_cpu_lines("model name", "flags"))))


def _cpu_lines(*names: str) -> list[str]:
    """Return the lines of /proc/cpuinfo that begin with one of the names."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [platform.processor()]
    return [line for line in lines if line.startswith(names)]


def affordable_size(
    model: nn.Module, config: dict[str, Any], device: torch.device, size: int, bf16: Sequence[bool]
) -> int:
    """Return how many images, at most ``size``, ``seconds_a_step`` measures in time on a CPU, by steps of two images.

    ``model`` is a copy, as there.

    Raises:
        TooSlowError: two images already take too long; the step is left within its forward pass.
    """
    if device.type != "cpu":
        return size
    model, normalize = model.train(), Normalize(config)
    small, (channels, height, width) = min(size, 2), config["input_size"]
    pixels = torch.full((small, height, width, channels), 128, dtype=torch.uint8)
    deadline = time.perf_counter() + TRIAL_S
    step_ends = deadline

    def check(*_: Any) -> None:
        if time.perf_counter() > step_ends:
            raise TooSlowError

    hook = nn.modules.module.register_module_forward_pre_hook(check)
    try:
        for _ in range(2):  # the first one warms up
            times = []
            for kind in bf16:
                step_ends = time.perf_counter() + (deadline - time.perf_counter()) / 3  # backward takes the rest
                times.append(_seconds(model, normalize, pixels, bf16=kind))
    finally:
        hook.remove()
    return max(small, min(size, int(small * ROUNDS_S / (1 + ROUNDS) / sum(times))))


def seconds_a_step(
    model: nn.Module, config: dict[str, Any], device: torch.device, size: int, bf16: Sequence[bool]
) -> list[float]:
    """Time forward and backward passes on grey images: medians of several rounds, after a warm-up.

    ``model`` is a copy: it is moved, and its gradients and BatchNorm's statistics change. ``size`` images make a step,
    half as many while a GPU's memory is too small for them. ``bf16`` has for each kind of step whether it is under
    autocast; the kinds take turns. After ``ROUNDS_S`` no further round begins.

    Returns:
        Seconds for each kind.
    """
    model, normalize = model.to(device).train(), Normalize(config).to(device)
    channels, height, width = config["input_size"]
    pixels = torch.full((size, height, width, channels), 128, dtype=torch.uint8, device=device)
    rounds: list[list[float]] = []
    try:
        for _ in range(1 + ROUNDS):
            rounds.append([_seconds(model, normalize, pixels, bf16=each) for each in bf16])
            warm = rounds[1:]
            if warm and (max(warm[-1]) > HOPELESS * min(warm[-1]) or sum(map(sum, warm)) > ROUNDS_S):
                break
    except torch.OutOfMemoryError:
        if size <= 2:
            raise
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return seconds_a_step(model, config, device, size // 2, bf16)
    return [statistics.median(each) for each in zip(*rounds[1:], strict=True)]


def _seconds(model: nn.Module, normalize: Normalize, pixels: Tensor, *, bf16: bool) -> float:
    began = time.perf_counter()
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        logits: Tensor = model(normalize(pixels))
    logits.float().logsumexp(dim=1).mean().backward()  # type: ignore[no-untyped-call]
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
    return time.perf_counter() - began


def check_compiling(
    model: nn.Module, config: dict[str, Any], finetune: FinetuneConfig, run: RunConfig, steps: int
) -> None:
    """Refuse ``finetune.compile`` where it takes longer than it saves in all optimiser steps of the training.

    Raises:
        UserError: it can't be compiled here, or the time to compile is more than the steps would save.
    """
    part = -(-finetune.batch_size // finetune.accumulate)
    device, bf16 = device_of(run), (finetune.precision == "bf16-mixed",)
    logger.info("compile: measuring a step, then compiling it, which may take minutes")
    try:
        size = affordable_size(copy.deepcopy(model), config, device, max(2, part), bf16)
    except TooSlowError:
        raise UserError("finetune.compile: a step is too slow here to measure what it saves; set it to false") from None
    (plain,) = seconds_a_step(copy.deepcopy(model), config, device, size, bf16)
    compiled = copy.deepcopy(model)
    compiled.compile()
    began = time.perf_counter()
    try:
        (fast,) = seconds_a_step(compiled, config, device, size, bf16)
    except Exception as error:  # a compiler's errors are of any kind
        reason = first_line(error)
        raise UserError(f"finetune.compile: torch.compile fails here ({reason}); set it to false") from error
    compiling = time.perf_counter() - began - (1 + ROUNDS) * fast
    scale = finetune.accumulate * part / size
    saved = (plain - fast) * scale * steps
    seconds = fast * scale, plain * scale, compiling
    logger.info("compile: a step takes %.4f s instead of %.4f, after %.0f s of compiling", *seconds)
    if saved < compiling:
        raise UserError(
            f"finetune.compile: compiling takes {compiling:.0f} s here and saves {max(saved, 0):.0f} s in {steps} "
            "steps; set it to false"
        )
