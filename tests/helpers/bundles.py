"""A small bundle of an untrained model, written once a session.

PYTHONPATH=tests python -m helpers.bundles FOLDER [bundled] writes it, or one of the bundled backbone, to try things by
hand.
"""

import functools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from headstart.core import paths
from headstart.core.io import read_json, write_json
from headstart.export.formats import traced, write_onnx
from headstart.inference import bundle
from headstart.models.backbone import create_backbone, features_of, get_head, input_config
from helpers.bands import bands_of

Change = Callable[[Path], object]
CLASSES = ["cat", "dog", "owl", "yak"]
INPUT: dict[str, Any] = {
    "input_size": [3, 32, 32],
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "crop_pct": 0.875,
    "crop_mode": "center",
}
CALIBRATION: dict[str, Any] = {
    "temperature": 1.5,
    "conformal": [
        {"method": "LAC", "level": 0.9, "threshold": 0.7},
        {"method": "LAC", "level": 0.95, "threshold": None},
        {"method": "APS", "level": 0.9, "threshold": 0.6},
    ],
}


BANDS = bands_of("uint16", 4)
"""Of the images of a bundle with bands."""


def copy_bundle(folder: Path, *, bands: bool = False) -> Path:
    """Return a copy of the bundle, or of one of images with ``BANDS``, which a test may change."""
    shutil.copytree(_written_once(bands=bands), folder)
    return folder


@functools.cache
def _written_once(*, bands: bool) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="bundle"))
    if bands:
        channels = BANDS.layout.channels
        of_bands = {"input_size": [channels, 32, 32], "mean": list(BANDS.mean), "std": list(BANDS.std)}
        write_bundle(folder, small_model(channels), CLASSES, INPUT | of_bands | {"bands": BANDS.record()})
    else:
        write_bundle(folder, small_model(), CLASSES, INPUT)
    return folder


def with_fitting_manifest(change: Change) -> Change:
    """Write the manifest anew after a change, so that not the manifest is refused."""

    def changed(folder: Path) -> None:
        change(folder)
        bundle.write_manifest(folder)

    return changed


def with_content(name: str, content: Callable[[Path], bytes]) -> Change:
    """Write another content into a file, and the manifest that fits."""
    return with_fitting_manifest(lambda folder: (folder / name).write_bytes(content(folder)))


@functools.cache
def small_model(channels: int = 3) -> nn.Module:
    """A timm model of 0.4 million random weights, for which images of noise are of different classes, none certain."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", num_classes=len(CLASSES), in_chans=channels)
        for _ in range(20):  # for BatchNorm's statistics
            model(torch.randn(16, channels, 32, 32))
        head, features = get_head(model), features_of(model.eval(), coloured_noise(64, channels))
        nn.init.normal_(head.weight, std=2 / float(features.std(0).norm()))
        head.bias.copy_(-(features @ head.weight.T).mean(0))
    return model


def coloured_noise(count: int, channels: int = 3) -> torch.Tensor:
    """Normalised images, float32 (count, channels, 32, 32)."""
    return torch.randn(count, channels, 1, 1) + 0.5 * torch.randn(count, channels, 32, 32)


def write_bundle(folder: Path, model: nn.Module, classes: list[str], data_config: dict[str, Any]) -> None:
    """Write a bundle whose reference is of noise images, half of which are beyond the threshold of 0.95."""
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": classes, "pretrained_cfg": data_config},
        safe_serialization=True,
    )
    write_onnx(traced(model, tuple(data_config["input_size"])), folder / bundle.ONNX, {})
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(40, *data_config["input_size"])).astype(np.float32))
    with torch.inference_mode():
        features = features_of(model, noise).numpy()
    np.save(folder / bundle.REFERENCE, features)
    thresholds = {"0.95": 0.05, "0.99": 0.5}
    ood = {"score": "1 - cosine", "neighbour": 10, "references": 40, "thresholds": thresholds}
    entries = {"format": 1, "input": data_config, "features": features.shape[1], "out_of_distribution": ood}
    write_json(
        folder / paths.MODEL_CONFIG, read_json(folder / paths.MODEL_CONFIG) | {"headstart": entries | CALIBRATION}
    )
    (folder / bundle.CARD).write_text("# A model for tests\n", encoding="utf-8")
    bundle.write_manifest(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    if sys.argv[2:] == ["bundled"]:
        backbone = create_backbone("bundled", pretrained=True, image_size=None, args={}).eval()
        names = read_json(Path("src/headstart/pretrained/resnet18d_64/config.json"))["label_names"]
        write_bundle(target, backbone, names, input_config(backbone))
    else:
        write_bundle(target, small_model(), CLASSES, INPUT)
