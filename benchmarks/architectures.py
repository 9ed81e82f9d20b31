"""Kinds of backbones through the whole pipeline, to every format: `python -m benchmarks.architectures FOLDER`.

FOLDER has images, one folder a class, or train/ and val/ of class folders; so many of each class are taken. Every
backbone has random weights, reads images of 64 px and is fine-tuned for an epoch; then every format of it is compared
by the parity check of `export`. Formats that round are measured here, without a bound: the classes of a backbone that
was hardly trained are as good as tied.
"""

import argparse
import itertools
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.machine import ROOT
from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core.io import read_json
from headstart.core.paths import REPORTS
from headstart.core.text import text_table
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.features.cache import read_features
from headstart.models.backbone import create_backbone, features_of, get_head
from headstart.stages import evaluate, export, features, finetune, prepare, probe

BACKBONES = (
    "resnet14t",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "efficientnet_b0",
    "mobilenetv4_conv_small",
    "swin_tiny_patch4_window7_224",
)
SIDE = 64
ANY = {"agreement": 0.001, "nll": 100.0}


def main() -> None:
    """Print a line a backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of-a-class", type=int, default=40, help="images in all (default: %(default)s)")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="default: %(default)s")
    args = parser.parse_args()
    table = [["backbone", "features", "cached = logits", "validation loss", *FORMATS]]
    with tempfile.TemporaryDirectory() as raw:
        deal(args.folder, Path(raw), args.of_a_class)
        for name in args.backbones:
            with tempfile.TemporaryDirectory() as project, chdir(project):
                table.append([name, *through(settings(name, Path(raw)))])
                print(text_table(table[:1] + table[-1:]), flush=True)
    print(text_table(table))


FORMATS = ("timm", "pt2", "onnx", "onnx_fp16", "onnx_int8")


def through(params: Params) -> list[str]:
    """Run all stages; return the figures of a row."""
    for stage in (prepare, features, probe, finetune, evaluate, export):
        stage.run(params.declared(stage.PARAMS))
    prepared, report = PreparedDataset.open(), read_json(REPORTS / "export.json")
    backbone = params.backbone
    model = create_backbone(
        backbone.name, pretrained=False, image_size=SIDE, args={}, seed=backbone.seed, num_classes=2
    ).eval()
    rows = prepared.rows("validation")[:8]
    with torch.inference_mode():
        computed = features_of(model, Normalize(prepared.input)(evaluation_pixels(prepared, rows)))
    cached = read_features(rows)
    assert cached.shape[1] == get_head(model).in_features
    history = read_json(REPORTS / "finetune.json")
    formats = [
        f"{each['max_difference']:.1e}, {each['top1_agreement']:.1%}"
        for name in FORMATS
        for each in [report["formats"][name]]
    ]
    difference = float((computed - torch.from_numpy(cached)).abs().max())
    return [str(cached.shape[1]), f"{difference:.1e}", f"{history['val_loss']:.3f}", *formats]


def deal(folder: Path, raw: Path, count: int) -> None:
    """Link ``count`` images of each class."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    for label, own in itertools.groupby(
        sorted(paths, key=lambda path: path.parent.name), lambda path: path.parent.name
    ):
        (raw / label).mkdir()
        for path in itertools.islice(own, count):
            (raw / label / path.name).symlink_to(path.absolute())


def settings(name: str, images: Path) -> Params:
    """Return the project's params with a backbone of random weights."""
    content: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    content["prepare"] |= {"source": "imagefolder", "path": str(images), "split": {"validation": 0.5, "test": 0.1}}
    content["backbone"] |= {"name": name, "pretrained": False, "image_size": SIDE}
    content["probe"] |= {"heads": [], "l2": [1e-1, 1e-2]}
    content["finetune"] |= {
        "recipe": "lp_ft",
        "epochs": 1,
        "batch_size": 32,
        "warmup_epochs": 0,
        "precision": "32-true",
    }
    content["export"] |= {"formats": ["onnx", "onnx_fp16", "onnx_int8", "pt2"], "fp16": ANY, "int8": ANY}
    content["run"] |= {"accelerator": "cpu", "tracking": "disabled", "cache": "cache"}
    return parse_params(content)


if __name__ == "__main__":
    main()
