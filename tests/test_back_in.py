"""An exported model as the backbone of a next project: a folder in timm's format, with other classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.paths import EXPORT, FINETUNE
from headstart.data.dataset import PreparedDataset
from headstart.models.backbone import create_backbone, get_head, head_name, input_config
from headstart.models.head import read_head, read_pretrained_head
from headstart.models.timm_checkpoint import load_timm, save_timm
from headstart.stages import features, finetune, prepare, probe
from headstart.targets.classes import Classes
from headstart.training.phases import starting_model
from helpers.images import CLASSES, INPUT, params, write_prepared

FIRST = "backbones/first"
# Unlike test_vit's own in size, preprocessing, layers and drop rates.
ARGS = {"depth": 2, "drop_path_rate": 0.3}
SIDE = 48
NEXT = ("ant", "bee", "cat", "dog", "eel")  # five, where the first project had four; two are common
SMALL: dict[str, Any] = {
    "prepare.source": "imagefolder",
    "prepare.path": "images",
    "backbone.name": f"local-dir:{FIRST}",
    "features.batch_size": 16,
    "probe.l2": [0.1, 0.01],
    "finetune.epochs": 1,
    "finetune.batch_size": 8,
    "run.cache": "cache",
}


def next_project(changes: dict[str, Any] | None = None) -> Params:
    return params({**SMALL, **(changes or {})})


def run(*stages: Any, changes: dict[str, Any] | None = None) -> None:
    for stage in stages:
        stage.run(next_project(changes).declared(stage.PARAMS))


def report(stage: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(Path("reports") / f"{stage}.json")
    return content


@pytest.fixture(autouse=True)
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The export of a first project in backbones/first, whose model is returned; images of the next one's classes."""
    monkeypatch.chdir(tmp_path)
    model = create_backbone("test_vit", pretrained=False, image_size=SIDE, args=ARGS, num_classes=len(CLASSES))
    with torch.no_grad():
        get_head(model).weight.normal_(generator=torch.Generator().manual_seed(0))
    prepared = write_prepared()
    dataset = read_json(prepared.folder / "dataset.json")
    dataset["input"] = {**INPUT, "input_size": [3, SIDE, SIDE]}
    (prepared.folder / "dataset.json").write_text(json.dumps(dataset))
    save_timm(model, model.state_dict(), PreparedDataset.open(), Path(FIRST))
    shutil.rmtree(prepared.folder)
    # The export adds this key, which timm ignores.
    config = read_json(Path(FIRST, "config.json"))
    Path(FIRST, "config.json").write_text(json.dumps(config | {"headstart": {"format": 1, "input": dataset["input"]}}))
    generator = np.random.default_rng(0)
    for label, name in enumerate(NEXT):
        Path("images", name).mkdir(parents=True)
        for i in range(12):
            noise = generator.integers(40 * label, 40 * label + 60, (60, 70, 3), dtype=np.uint8)
            Image.fromarray(noise).save(Path("images", name, f"{i}.png"))
    return model


def backbone_of(model: nn.Module) -> dict[str, Tensor]:
    head = head_name(model) + "."
    return {name: value for name, value in model.state_dict().items() if not name.startswith(head)}


@pytest.mark.parametrize("side", [None, 32])
def test_an_export_is_the_next_projects_backbone_with_other_classes(first: nn.Module, side: int | None) -> None:
    changes = {"backbone.image_size": side}
    run(prepare, features, probe, changes=changes)
    prepared = PreparedDataset.open()
    assert prepared.classes == list(NEXT)
    assert prepared.input == {**INPUT, "input_size": [3, side or SIDE, side or SIDE]}
    assert report("features")["computed"] == len(prepared.ids)
    own = read_pretrained_head()
    assert own is not None
    assert own.names == list(CLASSES)

    project = next_project(changes)
    model, _ = starting_model(project.backbone, project.finetune, target=Classes(NEXT), train_images=8, train_bytes=1)
    same = {name for name, value in backbone_of(first).items() if torch.equal(value, model.state_dict()[name])}
    resized = {"pos_embed"} if side else set()  # its positions are of another grid
    assert same == backbone_of(first).keys() - resized
    assert len(list(model.get_submodule("blocks").children())) == ARGS["depth"]
    head = read_head(project.finetune.l2.by_group["head"])
    assert torch.equal(get_head(model).weight, torch.from_numpy(head.weight))

    run(finetune, changes=changes)
    again = load_timm(FINETUNE)
    assert get_head(again).out_features == len(NEXT)
    assert input_config(again) == prepared.input
    assert read_json(FINETUNE / "config.json")["label_names"] == list(NEXT)


def test_drop_rates_are_the_next_projects_own() -> None:
    run(prepare, features, probe)
    project = next_project()
    model, _ = starting_model(project.backbone, project.finetune, target=Classes(NEXT), train_images=8, train_bytes=1)
    assert "drop_path_rate" not in read_json(Path(FIRST, "config.json"))["model_args"]
    assert not [name for name, module in model.named_modules() if type(module).__name__ == "DropPath"]


def test_other_weights_under_the_same_name_are_other_features() -> None:
    """Once the stages run: DVC itself compares the name alone."""
    run(prepare, features)
    config, weights = (Path(FIRST, name).read_bytes() for name in ("config.json", "model.safetensors"))
    shutil.rmtree(FIRST)
    Path(FIRST).mkdir()
    Path(FIRST, "config.json").write_bytes(config)
    changed = bytearray(weights)
    changed[-3] ^= 1  # a bit of some weight
    Path(FIRST, "model.safetensors").write_bytes(changed)
    run(features)
    assert report("features")["reused"] == 0
    Path(FIRST, "model.safetensors").write_bytes(weights)
    run(features)
    assert report("features")["computed"] == 0


@pytest.mark.parametrize("folder", [EXPORT, FINETUNE, FINETUNE / "raw", Path("link")])
def test_a_backbone_that_the_pipeline_itself_writes_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(FIRST, EXPORT)
    Path("link").symlink_to(EXPORT)
    for name in (f"local-dir:{folder}", f"local-dir:{tmp_path / folder}", f"local-dir:./{folder}/"):
        with pytest.raises(UserError, match=r"writes (export|models/finetune) anew at each run.*cp -r"):
            run(prepare, changes={"backbone.name": name})
    assert not Path("data/prepared").exists()
