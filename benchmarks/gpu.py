"""Try what only a GPU shows: resuming, fp16's scaler, a batch that its memory is too small for, compiling.

    python -m benchmarks.gpu resume|fp16|memory|compile [--model NAME] [--size N] [--batch-size N]

One line of result each. The first three fine-tune on invented images of 32 px; compile times steps of ``--size``.
"""

import argparse
import copy
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from headstart.core.paths import FINETUNE
from headstart.models.backbone import channels_last, get_head, input_config
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from headstart.training import batch_size
from headstart.training.autotune import ROUNDS, seconds_a_step
from headstart.training.checkpoint import load_checkpoint
from headstart.training.module import FineTuner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.images import params, write_prepared

ON_GPU = torch.cuda.is_available()
IMAGES = 512


def main() -> None:
    """Print the line of the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("resume", "fp16", "memory", "compile"))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    if args.part in ("fp16", "memory") and not ON_GPU:
        print("needs a GPU")
        return
    if args.part == "compile":
        print(compiling(args.model, args.size, args.batch_size))
        return
    os.chdir(tempfile.mkdtemp(prefix="gpu-"))
    write_prepared({"train": IMAGES, "validation": 64, "test": 4})
    width = get_head(timm.create_model(args.model)).in_features
    write_heads([Head(np.zeros((4, width), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    print(memory(args.model) if args.part == "memory" else resuming(args.model, fp16=args.part == "fp16"))


def train(cache: str, model: str, changes: Mapping[str, Any], stops: Set[int] = frozenset()) -> dict[str, Tensor]:
    """Fine-tune for two epochs, stopped by a signal within the steps of ``stops`` and started again; return weights."""
    settings = {
        "backbone.name": model,
        "backbone.pretrained": False,
        "backbone.drop_rate": 0.2,
        "finetune.epochs": 2,
        "finetune.batch_size": 32,
        "finetune.lr": {"backbone": 0.01, "head": 0.01},
        "finetune.augment.hflip": 0.5,
        "run.accelerator": "auto",
        "run.devices": 1,
        "run.cache": cache,
    }
    left, real = set(stops), FineTuner.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step in left:
            left.remove(self.trainer.global_step)
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch, batch_idx)

    FineTuner.training_step = training_step  # type: ignore[method-assign]
    for _ in range(1 + len(stops)):
        try:
            finetune.run(params({**settings, **changes}).declared(finetune.PARAMS))
            break
        except SystemExit:
            continue
    FineTuner.training_step = real  # type: ignore[method-assign]
    assert not left, f"it was not stopped at {left}"
    return load_file(FINETUNE / "model.safetensors")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """Return the largest difference of a weight, in words."""
    largest = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    return "bit for bit the same" if largest == 0 else f"{largest:.1e} apart"


def resuming(model: str, *, fp16: bool) -> str:
    """Compare a training that is stopped three times with one that is not, and two that are not."""
    changes = {"finetune.precision": "16-mixed"} if fp16 else {}
    once, again = (train(name, model, changes) for name in ("once", "again"))
    resumed = train("stopped", model, changes, {1, IMAGES // 32 - 1, IMAGES // 32 + 3})
    line = f"{model}: stopped at 3 steps and resumed: {difference(once, resumed)}; two that ran through: "
    line += difference(once, again)
    if fp16:
        states = [load_checkpoint(next(Path(cache).glob("runs/*/last.ckpt"))) for cache in ("once", "stopped")]
        scales = [state["MixedPrecision"]["scale"] for state in states]
        line += f"; the scaler ends at {scales[0]:g} and {scales[1]:g}"
    return line


def memory(model: str) -> str:
    """Compare a batch at once with one in parts, since half of its memory raises torch's own OutOfMemoryError."""
    changes = {"finetune.batch_size": IMAGES, "finetune.batch_norm": "frozen", "backbone.drop_rate": 0.0}
    whole = train("whole", model, changes)
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * peak / total)
    found, real = list[int](), batch_size.fitting_accumulation

    def noted(*args: Any, **kwargs: Any) -> int:
        found.append(real(*args, **kwargs))
        return found[-1]

    batch_size.fitting_accumulation = noted
    parts = train("parts", model, changes)
    return (
        f"{model}: {IMAGES} images take {peak / 1e9:.2f} GB at once; with half of it they are computed in {found[-1]} "
        f"parts: {difference(whole, parts)}"
    )


def compiling(name: str, size: int, images: int) -> str:
    """Time a step as it is and compiled, in bf16 on a GPU."""
    device, kinds = torch.device("cuda" if ON_GPU else "cpu"), (ON_GPU,)
    model = channels_last(timm.create_model(name, num_classes=10))
    config = input_config(model, size)
    (plain,) = seconds_a_step(copy.deepcopy(model), config, device, images, kinds)
    model.compile()
    began = time.perf_counter()
    (fast,) = seconds_a_step(model, config, device, images, kinds)
    taken = time.perf_counter() - began - (1 + ROUNDS) * fast
    pays = math.ceil(taken / (plain - fast)) if fast < plain else math.inf
    return (
        f"{name}, {images} images of {size} px: a step takes {1000 * fast:.1f} ms instead of {1000 * plain:.1f}, after "
        f"{taken:.0f} s of compiling, which pays after {pays} steps"
    )


if __name__ == "__main__":
    main()
