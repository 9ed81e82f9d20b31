"""The recipes: overlays on params.yaml that say what to expect, run on invented images laid out as torchvision's."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from headstart.config.completion import complete_params
from headstart.config.loader import load_params, parse_params, read_sections
from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import read_table
from headstart.data.manifest import manifest_rows
from headstart.models.backbone import create_backbone
from headstart.stages import evaluate, features, finetune, prepare, probe
from headstart.targets.classes import Classes
from headstart.training.phases import describe, make_plan
from helpers.images import ROOT

RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
DATA_SETS = {"flowers102": "Flowers102", "food101": "Food101", "pets": "OxfordIIITPet"}
BACKBONES = {"resnet50", "vit_small"}
MERGED: dict[str, Path] = {}
FIELDS = ["command", "data", "backbone", "published", "compare", "source", "differs", "measured"]
CLASSES, TRAIN, VALIDATION, TEST = 3, 14, 4, 3
# The recipe's own architecture with fewer and narrower layers.
ARGS: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    "vit_small": {"depth": 2, "embed_dim": 48, "num_heads": 3},
}
SMALL: dict[str, dict[str, Any]] = {
    "backbone": {"pretrained": False, "image_size": 56},
    "finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 12, "precision": "32-true"},
    "run": {"accelerator": "cpu", "tracking": "disabled", "workers": 0, "cache": "cache"},
}


def comment(name: str) -> dict[str, str]:
    """What a recipe's first comment says, by field."""
    lines = [line[1:] for line in RECIPES[name].read_text(encoding="utf-8").partition("\n\n")[0].splitlines()]
    fields: dict[str, str] = {}
    for line in lines[2:]:
        if found := re.match(r" (\w+): +(.*)", line):
            fields[key := found[1]] = found[2]
        else:
            fields[key] += " " + line.strip()
    return fields


@pytest.fixture(scope="module", autouse=True)
def _merged(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lay each recipe over a copy of the project's params.yaml."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, recipe in RECIPES.items():
        MERGED[name] = Path(shutil.copy(ROOT / "params.yaml", folder / f"{name}.yaml"))
        complete_params(MERGED[name], recipe)


def content(name: str) -> dict[str, Any]:
    return read_sections(MERGED[name])


def flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    a, b = flat(one), flat(other)
    return {key for key in a if a[key] != b[key]}


def test_there_is_one_for_each_data_set_and_backbone() -> None:
    assert set(RECIPES) == {f"{data}_{backbone}" for data in DATA_SETS for backbone in BACKBONES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command_the_published_figures_and_their_source(name: str) -> None:
    said = comment(name)
    assert list(said) == FIELDS
    assert said["command"] == f"headstart params recipes/{name}.yaml && dvc repro"
    assert re.search(r"arXiv \d{4}\.\d{5}, table \d", said["source"])
    figures = re.findall(r"\d\d\.\d(?= %)", said["published"])
    assert figures
    assert all(figure in said["compare"] for figure in figures)
    assert figures == sorted(figures)
    assert "not by us" in said["measured"]


@pytest.mark.parametrize("name", RECIPES)
def test_its_backbone_is_one_of_timms_with_weights_under_the_licence_that_it_names(name: str) -> None:
    params, said = load_params(MERGED[name]), comment(name)["backbone"]
    assert params.backbone.name in timm.list_pretrained()
    assert params.backbone.pretrained
    licence = timm.get_pretrained_cfg(params.backbone.name).license  # type: ignore[union-attr]
    assert f"{params.backbone.name} ({licence})".lower() in said.lower()


def test_recipes_differ_only_where_they_must() -> None:
    for data in DATA_SETS:
        between = differing(content(f"{data}_resnet50"), content(f"{data}_vit_small"))
        assert {key.split(".")[0] for key in between} == {"backbone", "finetune"}
    of_data = {"source", "split", "train_scale", "epochs", "warmup_epochs", "batch_size", "early_stopping"}
    for backbone in BACKBONES:
        for data in DATA_SETS:
            between = differing(content(f"pets_{backbone}"), content(f"{data}_{backbone}"))
            assert {key.split(".")[1] for key in between} <= of_data
    project = read_sections(ROOT / "params.yaml")
    for name in RECIPES:
        assert {section: content(name)[section] for section in ("features", "export", "run")} == {
            section: project[section] for section in ("features", "export", "run")
        }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_over_another_leaves_nothing_of_it(name: str, tmp_path: Path) -> None:
    for other, merged in MERGED.items():
        path = tmp_path / f"{other}.yaml"
        shutil.copy(merged, path)
        complete_params(path, RECIPES[name])
        assert read_sections(path) == content(name)


@pytest.mark.parametrize("name", RECIPES)
def test_its_penalty_is_felt_by_the_true_backbone_on_as_many_images(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A decay that does nothing in so few steps would be warned of."""
    params = load_params(MERGED[name])
    with torch.device("meta"):
        model = create_backbone(params.backbone.name, pretrained=False, image_size=None, args={})
        model.reset_classifier(10)  # type: ignore[operator]
    images = re.search(r"([\d,]+) to train on", comment(name)["data"])
    assert images
    count = int(images[1].replace(",", ""))
    with caplog.at_level(logging.WARNING):
        size: dict[str, Any] = {"target": Classes([*"abcdefghij"]), "train_images": count, "train_bytes": 1}
        rows = describe(make_plan(model, params.finetune, **size, pretrained=True))
    assert caplog.messages == []
    assert {row["group"] for row in rows} == {"head", "head_free", "backbone", "backbone_free"}


def draw(path: Path, label: int) -> None:
    """Noise whose brightness goes with its class."""
    generator = np.random.default_rng([label, len(path.stem), *path.stem.encode()])
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.integers(80 * label, 80 * label + 90, (70, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, total = root / "flowers-102", CLASSES * (TRAIN + VALIDATION + TEST)
    for i in range(total):
        draw(base / "jpg" / f"image_{i + 1:05d}.jpg", i % CLASSES)
    numbers = np.split(np.arange(1, total + 1), [CLASSES * TRAIN, CLASSES * (TRAIN + VALIDATION)])
    savemat(base / "imagelabels.mat", {"labels": np.arange(total) % CLASSES + 1})
    savemat(base / "setid.mat", dict(zip(("trnid", "valid", "tstid"), numbers, strict=True)))
    names = {"label": "imagelabels.mat", "setid": "setid.mat"}
    md5 = {key: hashlib.md5((base / name).read_bytes()).hexdigest() for key, name in names.items()}  # noqa: S324
    files = {key: (name, md5[key]) for key, name in names.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | files)  # noqa: SLF001


def pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, count in (("trainval", TRAIN + VALIDATION), ("test", TEST)):
        named = [(f"Breed{label}_{split}{i}", label) for label in range(CLASSES) for i in range(count)]
        for stem, label in named:
            draw(base / "images" / f"{stem}.jpg", label)
        lines = [f"{stem} {label + 1} 1 1" for stem, label in named]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines))


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, count in (("train", TRAIN + VALIDATION), ("test", TEST)):
        listed = {f"dish_{label}": [f"dish_{label}/{split}{i}" for i in range(count)] for label in range(CLASSES)}
        for label, stems in enumerate(listed.values()):
            for stem in stems:
                draw(base / "images" / f"{stem}.jpg", label)
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))


LAYOUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "flowers102": flowers102,
    "food101": food101,
    "pets": pets,
}


def small(name: str) -> Params:
    sections = content(name)
    for section, changes in SMALL.items():
        sections[section] |= changes
    sections["backbone"]["args"] = ARGS[name.partition("_")[2]]
    return parse_params(sections)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_invented_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, _, _ = name.partition("_")
    LAYOUTS[data](Path("cache") / "torchvision", monkeypatch)
    params = small(name)
    assert params.prepare.source == f"torchvision:{DATA_SETS[data]}"
    for stage in (prepare, features, probe, finetune, evaluate):
        stage.run(params.declared(stage.PARAMS))

    rows = list(manifest_rows())
    counts = {split: sum(row["split"] == split for row in rows) for split in ("train", "validation", "test")}
    assert len(rows) == CLASSES * (TRAIN + VALIDATION + TEST)
    assert counts["test"] == CLASSES * TEST  # the official ones
    assert all(row["source"].split("/")[1] == "test" for row in rows if row["split"] == "test")
    assert counts["validation"] == CLASSES * VALIDATION or data != "flowers102"
    assert 0 < counts["validation"] < counts["train"]
    history = read_table(paths.HISTORY)
    assert [int(row["epoch"]) for row in history] == [0, 1, 2]
    groups = json.loads(Path("reports/finetune.json").read_text())["groups"]
    rates = {row["lr"] for row in groups if row["group"] == "backbone"}
    assert max(rates) <= params.finetune.lr["backbone"]
    assert (len(rates) > 1) == (params.finetune.layer_decay is not None)
    models = set(json.loads(Path("reports/evaluate.json").read_text())["models"])
    assert models - {"finetune_tta"} == {"probe", "finetune"}
