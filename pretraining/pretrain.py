"""Pretrain the backbone that ships with Headstart: a narrow ResNet-18-D for 64 px images, from scratch.

Reads a folder of class folders, ``DATA/{train,val}/<wnid>/*.JPEG`` of 64 x 64 pixels, and ``DATA/classes.tsv``
(wnid, words). Writes timm's ``local-dir`` format to OUT: ``model.safetensors`` (fp16) and ``config.json`` with the 200
label names. The weights are the exponential moving average after the last epoch; the validation images only measure the
accuracy, nothing is chosen on them.

    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1
    python pretraining/pretrain.py DATA src/headstart/pretrained/resnet18d_64

Expected result: see README.md beside this file. Killed and started again, it resumes after the last completed epoch.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from timm.models import save_for_hf
from timm.optim._param_groups import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

ARCHITECTURE = "resnet18d"
# Half the usual widths, and about a third in the last stage, so that fp16 weights stay below 4 MB.
MODEL_ARGS: dict[str, Any] = {"channels": [32, 64, 128, 184], "stem_width": 16, "stem_type": "deep_tiered"}
SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, PEAK_LR, WEIGHT_DECAY, LABEL_SMOOTHING, EMA_DECAY = 128, 0.12, 5e-4, 0.1, 0.998


@dataclass(frozen=True)
class Stage:
    """Epochs at one training size: small crops first are cheap, and the last size is that of evaluation."""

    epochs: int
    size: int
    smallest_crop: float  # of the image's area


STAGES = (Stage(14, 40, 0.35), Stage(10, 48, 0.35), Stage(8, 64, 0.45))
EPOCHS = sum(stage.epochs for stage in STAGES)
WARMUP, HORIZON, TURN, RESTART, RESTART_FACTOR = 4, 40, 14, 28, 0.3


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/, val/ and classes.tsv")
    parser.add_argument("out", type=Path, help="folder to write model.safetensors and config.json to")
    parser.add_argument("--state", type=Path, default=Path("pretraining.ckpt"), help="checkpoint of an interrupted run")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    images, labels, wnids = decode_folder(args.data / "train")
    val_images, val_labels, _ = decode_folder(args.data / "val")
    model = timm.create_model(ARCHITECTURE, num_classes=len(wnids), **MODEL_ARGS)
    model = model.to(device).to(memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=EMA_DECAY, use_warmup=True)
    optimizer = torch.optim.SGD(
        param_groups_weight_decay(model, WEIGHT_DECAY), lr=PEAK_LR, momentum=0.9, nesterov=True, foreach=True
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step / steps))
    first, seconds = 0, 0.0
    if args.state.exists():
        state = torch.load(args.state, map_location=device, weights_only=True)
        parts: tuple[Any, ...] = (model, ema, optimizer, schedule)
        for each, saved in zip(parts, state["parts"], strict=True):
            each.load_state_dict(saved)
        first, seconds = state["epoch"], state["seconds"]

    for epoch in range(first, EPOCHS):
        began = time.perf_counter()
        stage = stage_of(epoch)
        torch.manual_seed(epoch)
        loss = train_one_epoch(model, ema, optimizer, schedule, batches(images, labels, stage, device))
        seconds += time.perf_counter() - began
        line = f"epoch {epoch + 1}/{EPOCHS}  {stage.size} px  loss {loss:.3f}  {seconds:.0f} s"
        if (epoch + 1) % 4 == 0 or epoch + 1 == EPOCHS:
            line += f"  val top-1 {accuracy(ema.module, val_images, val_labels, device):.4f}"
        print(line, flush=True)
        states = [each.state_dict() for each in (model, ema, optimizer, schedule)]
        temporary = args.state.with_suffix(".tmp")
        torch.save({"parts": states, "epoch": epoch + 1, "seconds": seconds}, temporary)
        temporary.rename(args.state)

    words = dict(line.split("\t") for line in (args.data / "classes.tsv").read_text().splitlines())
    write(ema.module, wnids, words, args.out)
    shipped = timm.create_model(f"local-dir:{args.out}", pretrained=True).to(device)
    shipped = shipped.to(memory_format=torch.channels_last)
    top1 = accuracy(shipped, val_images, val_labels, device)
    size = (args.out / "model.safetensors").stat().st_size
    print(json.dumps({"top1": top1, "val_images": len(val_labels), "seconds": round(seconds), "bytes": size}))


def decode_folder(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Decode a folder of class folders: uint8 images (n, 3, 64, 64), int64 labels (n,), and the class names."""
    dataset = ImageFolder(str(folder))
    images = torch.empty(len(dataset), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, (image, _) in enumerate(dataset):
        images[i] = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
    return images, torch.tensor(dataset.targets), dataset.classes


def stage_of(epoch: int) -> Stage:
    """Return the stage that an epoch, counted from 0, belongs to."""
    for stage in STAGES:
        if epoch < stage.epochs:
            return stage
        epoch -= stage.epochs
    raise ValueError("epoch is beyond the last stage")


def learning_rate(epoch: float) -> float:
    """Return the factor on PEAK_LR: a one-cycle of HORIZON epochs (Smith 2018), from TURN a line to 0; then a restart.

    Neither the cut nor the restart (Loshchilov and Hutter 2017) is a finding: the cut ended a run planned for 40 epochs
    within the available time, and the restart used the time that was left.
    """
    if epoch < WARMUP:
        return 0.52 - 0.48 * math.cos(math.pi * epoch / WARMUP)
    if epoch >= RESTART:
        return RESTART_FACTOR * (EPOCHS - epoch) / (EPOCHS - RESTART)
    cycle = 0.5 * (1 + math.cos(math.pi * (min(epoch, TURN) - WARMUP) / (HORIZON - WARMUP)))
    return cycle * min(1.0, (RESTART - epoch) / (RESTART - TURN))


def batches(images: Tensor, labels: Tensor, stage: Stage, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled, randomly cropped and flipped batches of float32 (BATCH, 3, size, size), channels_last."""
    order = torch.randperm(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        pixels = normalize(images[chosen].to(device))
        # RandomResizedCrop and horizontal flip (Szegedy et al. 2015) for the whole batch as one bilinear warp.
        area = torch.empty(BATCH).uniform_(stage.smallest_crop, 1)
        ratio = torch.empty(BATCH).uniform_(-0.2877, 0.2877).exp()  # 3/4 to 4/3, uniform in the logarithm
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        flip = torch.randint(0, 2, (BATCH,)) * 2 - 1
        warp = torch.zeros(BATCH, 2, 3)
        warp[:, 0, 0], warp[:, 1, 1] = width * flip, height
        warp[:, 0, 2] = (1 - width) * torch.empty(BATCH).uniform_(-1, 1)
        warp[:, 1, 2] = (1 - height) * torch.empty(BATCH).uniform_(-1, 1)
        grid = F.affine_grid(warp.to(device), [BATCH, 3, stage.size, stage.size], align_corners=False)
        crops = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        yield crops.contiguous(memory_format=torch.channels_last), labels[chosen].to(device)


def normalize(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 with ImageNet's mean and standard deviation, channels_last."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def train_one_epoch(
    model: nn.Module,
    ema: ModelEmaV3,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    data: Iterator[tuple[Tensor, Tensor]],
) -> float:
    """Train on all batches; return the mean cross-entropy with label smoothing."""
    model.train()
    total, count = torch.zeros((), device=next(model.parameters()).device), 0
    for inputs, targets in data:
        loss = F.cross_entropy(model(inputs), targets, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        ema.update(model, step=schedule.last_epoch)
        total += loss.detach()
        count += 1
    return float(total) / count


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Return the top-1 accuracy at 64 px, whole images, no test-time augmentation."""
    model.eval()
    right = 0
    for start in range(0, len(images), 500):
        pixels, targets = images[start : start + 500], labels[start : start + 500]
        right += int((model(normalize(pixels.to(device))).argmax(1).cpu() == targets).sum())
    return right / len(labels)


def write(model: nn.Module, wnids: list[str], words: dict[str, str], out: Path) -> None:
    """Write the model in timm's ``local-dir`` format, with weights rounded to fp16."""
    config = {
        "label_names": wnids,
        "label_descriptions": {wnid: words[wnid] for wnid in wnids},
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": list(MEAN),
            "std": list(STD),
            "pool_size": [2, 2],
            "license": "other",
        },
    }
    # safetensors takes no channels_last.
    model = model.half().cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(model, str(out), model_config=config, model_args=MODEL_ARGS, safe_serialization=True)


if __name__ == "__main__":
    main()
