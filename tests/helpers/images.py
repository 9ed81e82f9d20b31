"""Synthetic data for tests: params, packed images, and the outputs of the stages before the tested one.

Everything is written below the working directory, as in a project's folder.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML
from scipy.special import log_softmax
from timm.models import save_for_hf
from torch import nn

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core.blocks import write_rows
from headstart.core.io import atomic_write, read_json, write_json, write_report
from headstart.core.paths import BASELINES, FINETUNE, HEADS_INFO, PREPARED
from headstart.data.dataset import SPLITS, VALUES, PreparedDataset
from headstart.data.image_info import info_of
from headstart.data.manifest import manifest_rows, write_manifest
from headstart.data.packing import store_spec
from headstart.data.shards import checksum, shard_header, shard_path, write_index
from headstart.features.extract import write_features
from headstart.models.backbone import features_of
from headstart.models.head import Head, write_heads
from headstart.models.timm_checkpoint import TARGET
from headstart.probe.outputs import OUTSIDE_TRAIN, baseline_file
from headstart.targets.kinds import make_reader, make_target
from headstart.targets.target import Reader, Target

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "dog", "owl", "yak")
IMAGES = {"train": 12, "validation": 10, "test": 9}
INPUT = {
    "input_size": [3, 32, 32],
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "crop_pct": 0.875,
    "crop_mode": "center",
}
STORED = 36  # 32 / 0.875: images are stored before the crop

SMALL_PROJECT = {
    "prepare.source": "imagefolder",
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "features.batch_size": 8,
    "probe.l2": [0.1, 0.01],
    "run.cache": "cache",
}
"""Params, by dotted key, with which the stages take little time on what ``draw_brightness_classes`` draws."""


PLAIN_TRAINING = {
    "finetune.epochs": 10,
    "finetune.optimizer": "sgd",
    "finetune.lr": {"backbone": 0.01, "head": 0.01},
    "finetune.warmup_epochs": 1,
    "finetune.batch_norm": "train",
    "finetune.early_stopping": {"monitor": "val_loss", "patience": 5, "min_delta": 0.0},
    "finetune.clip": None,
    "finetune.ema": None,
    "finetune.augment.hflip": 0.0,
    "finetune.augment.vflip": 0.0,
    "finetune.augment.quarter_turn": 0.0,
    "finetune.shuffle_windows": 1,
}
"""Params by dotted key: nothing chosen, averaged, frozen or clipped, so that tests see each of them by itself."""


def draw_brightness_classes(root: Path, labels: Sequence[str]) -> None:
    """Draw 20 images of noise for each class into a folder of its name; the classes differ in brightness."""
    generator = np.random.default_rng(0)
    for i, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for j in range(20):
            noise = generator.integers(50 * i, 50 * i + 150, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{j}.png")


def params(changes: Mapping[str, Any] | None = None) -> Params:
    """Return params.yaml for the CPU, untracked, without baselines, of plain training, with changes by dotted key."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    quiet = {"run.accelerator": "cpu", "run.tracking": "disabled", "run.workers": 0, "probe.heads": []}
    quiet |= {"finetune.precision": "32-true"} | PLAIN_TRAINING
    for key, value in deepcopy({**quiet, **(changes or {})}).items():  # a nested change may not reach the constants
        section, *path, name = key.split(".")
        target = content[section]
        for key_part in path:
            target = target[key_part]
        target[name] = value
    return parse_params(content)


def reader_of(kind: str, classes: tuple[str, ...] = CLASSES) -> Reader:
    """Return what reads the cells of ``cells_of``."""
    columns = {"labels": ["dark", "bright", "even"], "number": ["brightness [lux]"]}.get(kind, ["label"])
    return make_reader(kind, columns, separator=";", grades=classes if kind == "grade" else None, fold=False)


def cells_of(kind: str, image: int, label: int, classes: tuple[str, ...] = CLASSES) -> list[Any]:
    """Return what a table has of an image of ``write_prepared``: some of its labels are unknown."""
    if kind == "labels":
        return [int(label == 0), int(label > 0), "" if image % 7 == 6 else int(image % 3 == 0)]
    return [10 * label + image % 5] if kind == "number" else [classes[label]]


def write_prepared(
    images: Mapping[str, int] = IMAGES, classes: tuple[str, ...] = CLASSES, *, files: bool = False, kind: str = "class"
) -> PreparedDataset:
    """Write data/prepared: noise whose brightness depends on its class; classes in turn, splits mixed.

    With ``files`` the images are also written to data/raw, as PNGs. What is learned is of the given kind.
    """
    reader = reader_of(kind, classes)
    generator = np.random.default_rng(0)
    PREPARED.mkdir(parents=True)
    order = generator.permutation([split for split in SPLITS for _ in range(images[split])])
    manifest, index = [], []
    with shard_path(PREPARED, 0).open("wb") as shard:
        shard.write(shard_header("raw"))
        for i, split in enumerate(order):
            label = i % len(classes)
            darkest = 150 * label // (len(classes) - 1)
            image = generator.integers(darkest, darkest + 100, (STORED, STORED, 3), dtype=np.uint8)
            info, pixels = info_of(Image.fromarray(image)), image.tobytes()
            entry = shard.tell(), len(pixels), crc32(pixels), 0
            index.append((i, *entry, label if reader.is_name else 0, STORED, STORED, SPLITS.index(split)))
            source = f"{classes[label]}/{i}.png"
            text = classes[label] if kind == "class" else reader.read(cells_of(kind, i, label, classes))
            named = f"{i:016x}", source, text, split, "", sha256(_file(source, image, files)).hexdigest()
            manifest.append([*named, STORED, STORED, info.phash, info.contrast])
            shard.write(pixels)
    of_all = write_manifest(PREPARED, [], manifest, len(manifest))
    write_index(PREPARED, index, len(index))
    texts = [row[2] for row in manifest]
    target = make_target("class", classes, {}) if kind == "class" else reader.target(set(texts))
    values, tables = target.values(texts, len(texts)), ["index.npy"]
    target = target.trained(values[order == "train"])
    if not reader.is_name:
        np.save(PREPARED / VALUES, values)
        tables.append(VALUES)
    about = {"classes": [*target.names], "target": {"kind": kind, "spec": target.spec()}}
    dataset = {"pictures": len(index), **about, **store_spec(INPUT, None, "raw"), "sha256": of_all}
    sizes = {"shard_bytes": [shard_path(PREPARED, 0).stat().st_size]}
    crc32_of = {name: checksum(PREPARED / name) for name in tables}
    write_json(PREPARED / "dataset.json", dataset | sizes | {"crc32": crc32_of})
    return PreparedDataset.open()


def _file(source: str, image: NDArray[np.uint8], on_disk: bool) -> bytes:
    """Return an image's bytes: of the PNG that is written, or of its pixels if there shall be no files."""
    if not on_disk:
        return image.tobytes()
    path = Path("data/raw", source)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path.read_bytes()


def write_finetune(classes: tuple[str, ...] = CLASSES, target: Target | None = None) -> nn.Module:
    """Write models/finetune and its report: a small untrained model, with BatchNorm statistics that are not trivial.

    What it computes is the ``target``, or the classes.
    """
    target = target or make_target("class", classes, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", num_classes=target.outputs)
        nn.init.normal_(model.get_classifier().weight)  # type: ignore[operator]
        with torch.no_grad():
            model(torch.randn(8, 3, 32, 32) + 0.5)
    about = {TARGET: {"kind": target.kind, "spec": target.spec()}}
    model_config = {"label_names": [*target.names], "pretrained_cfg": INPUT, **about}
    with atomic_write(FINETUNE) as folder:
        save_for_hf(model, str(folder), model_config=model_config, safe_serialization=True)
    write_report("finetune", {"training_seconds": 6.25, "processes": 2, f"val_{next(iter(target.measures))}": 0.5})
    return model.eval()


def write_probe(prepared: PreparedDataset, model: nn.Module) -> None:
    """Write the outputs of features and probe: the model's features, its head slightly changed, a random baseline."""
    head, outputs = model.get_classifier(), prepared.target.outputs  # type: ignore[operator]
    with torch.inference_mode():
        features = features_of(model, torch.randn(len(prepared.ids), 3, 32, 32)).numpy()
        weight, bias = head.weight.numpy()[:outputs] + 0.1, head.bias.numpy()[:outputs]
    write_features(features.__getitem__, features.shape, "float32", {})
    write_heads([Head(weight, bias, 1e-3)], 0)
    outside_train = np.setdiff1d(np.arange(len(prepared.ids)), prepared.rows("train"))
    scores = np.random.default_rng(0).normal(size=(len(outside_train), outputs))
    if prepared.target.kind == "class":
        scores = log_softmax(scores, axis=1)
    with atomic_write(BASELINES) as folder:
        folder.mkdir()
        for split in OUTSIDE_TRAIN:
            rows = np.searchsorted(outside_train, prepared.rows(split))
            write_rows(folder / baseline_file("knn", split), [scores[rows].astype(np.float32)], (len(rows), outputs))
    primary = f"val_{next(iter(prepared.target.measures))}"
    figures = {primary: 0.25, "fit_seconds": 2.5, "predict_seconds": 0.25}
    evidence = {"images": 0, "reason": "nothing was tried", "changes": {}}
    report = {primary: 0.75, "fit_seconds": 1.5, "heads": {"knn": figures}, "augmentation": evidence}
    write_report("probe", report)


def write_zero_head(prepared: PreparedDataset) -> None:
    """Write models/probe for test_resnet: a head of zeros, with quantiles of its residuals."""
    outputs = prepared.target.outputs
    write_heads([Head(np.zeros((outputs, 96), np.float32), np.zeros(outputs, np.float32), 1e-3)], 0)
    write_json(HEADS_INFO, read_json(HEADS_INFO) | {"residual_quantiles": [[-1.5, 0.1, 1.5]] * outputs})


def sources(prepared: PreparedDataset) -> list[str]:
    """Return the source name of every image, by row."""
    return [row["source"] for row in manifest_rows(prepared.folder)]
