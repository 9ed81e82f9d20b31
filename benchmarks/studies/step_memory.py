"""Compare the memory that a step on a CPU is estimated to take with what it takes.

    python -m benchmarks.studies.step_memory [MODEL:SIZE ...]

Each model's steps of 32 images run in a process of their own, as a stage sets it up: three with SGD, or, in the second
table, three forward passes. What they take is the growth of the peak of the process's memory (VmHWM, so on Linux only).
"""

import subprocess
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor

from headstart.data.loader import Normalize
from headstart.distributed.memory import live_bytes
from headstart.features.extract import SLACK as INFERENCE_SLACK
from headstart.models.backbone import channels_last
from headstart.stages.program import keep_memory
from headstart.training.batch_size import SLACK

IMAGES = 32
MODELS = (
    *("efficientnet_lite0:224", "resnet18:224", "vit_tiny_patch16_224:224", "mobilenetv3_small_100:224"),
    *("convnext_atto:224", "resnet10t:64", "regnety_002:128", "vit_small_patch16_224:224"),
    *("swin_tiny_patch4_window7_224:224", "resnet50:160"),
)


def main() -> None:
    """Print both tables, or with ``--row`` one model's row of one."""
    if "--row" in sys.argv:
        print(row(*sys.argv[2:]))
        return
    for mode in ("training", "inference"):
        print(f"\n| {mode} | px | estimated MB | measured MB | measured / estimated |\n|---|---|---|---|---|")
        for model in sys.argv[1:] or MODELS:
            command = [sys.executable, "-m", "benchmarks.studies.step_memory", "--row", mode, *model.split(":")]
            subprocess.run(command, check=True)


def row(mode: str, name: str, pixels: str) -> str:
    """Measure one model in this process."""
    keep_memory()
    training, size = mode == "training", int(pixels)
    model = channels_last(timm.create_model(name, num_classes=10)).eval()
    normalize = Normalize({"mean": [0.5] * 3, "std": [0.2] * 3})

    def forward(images: int) -> Tensor:
        logits: Tensor = model(normalize(torch.zeros(images, size, size, 3, dtype=torch.uint8)))
        return logits

    weights = sum(parameter.nbytes for parameter in model.parameters())
    with torch.set_grad_enabled(training):
        per_image = live_bytes(lambda: forward(1), model if training else None)
        # Gradients and momentum; the ledger's copies are a stage's.
        estimate = IMAGES * per_image * (SLACK if training else INFERENCE_SLACK) + 2 * weights * training
        before = status("VmRSS")
        model.train(training)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
        for _ in range(3):
            logits = forward(IMAGES)
            if training:
                logits.logsumexp(dim=1).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
    taken = status("VmHWM") - before
    return f"| {name} | {size} | {estimate / 1e6:.0f} | {taken / 1e6:.0f} | {taken / estimate:.2f} |"


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
