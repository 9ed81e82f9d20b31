import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from torch import Tensor, nn

from headstart.core.errors import UserError
from headstart.data.transforms import evaluation_transform
from headstart.models import backbone
from headstart.models.backbone import (
    channels_last,
    features_of,
    get_head,
    head_name,
    input_config,
    input_config_by_name,
    timm_name,
    weights_sha256,
)
from helpers.hub_server import HubServer, ask, hub_server

SMALL = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
MOBILENET = "mobilenetv3_small_050"


def build(name: str, **changes: Any) -> nn.Module:
    plain: dict[str, Any] = {"pretrained": False, "image_size": None, "args": {}, "num_classes": 5}
    return backbone.create_backbone(name, **{**plain, **changes})


def refusal(name: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(name, **changes)
    return str(caught.value)


@pytest.mark.parametrize("name", [*SMALL, MOBILENET])
@torch.inference_mode()
def test_the_classifier_of_the_features_is_the_model(name: str) -> None:
    model = build(name, image_size=32).eval()
    head = get_head(model)
    assert not head.weight.any()
    assert not head.bias.any()
    head.weight.normal_(generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = features_of(model, inputs)
    assert features.shape == (2, head.in_features)
    if name == MOBILENET:
        assert model.num_features == 288  # of the last map
        assert head.in_features == 1024  # what the classifier reads
    assert torch.allclose(head(features), model(inputs), atol=1e-5)
    assert model.get_submodule(head_name(model)) is head


def test_initial_weights_depend_on_the_seed_alone_and_the_global_generator_keeps_its_state() -> None:
    before = torch.get_rng_state()
    first = build("test_resnet", seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    try:
        again, other = build("test_resnet", seed=3).state_dict(), build("test_resnet", seed=4).state_dict()
    finally:
        torch.set_rng_state(before)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(
        other["conv1.0.weight" if "conv1.0.weight" in other else "conv1.weight"], next(iter(first.values()))
    )


def test_wrong_names_and_arguments_are_explained(tmp_path: Path) -> None:
    unknown = refusal("resnet5O")
    assert "backbone.name: resnet5O: Unknown model" in unknown
    assert "did you mean resnet50" in unknown
    assert "did you mean" not in refusal("zzzzzzzz")
    assert "Invalid pretrained tag (nonsense)" in refusal("test_resnet.nonsense", pretrained=True)
    assert "hf-hub:owner/name" in refusal("owner/name")
    assert "backbone.args: timm does not build test_resnet" in refusal("test_resnet", args={"widht": 3})
    missing = refusal(f"local-dir:{tmp_path}", pretrained=True)
    assert f"backbone.name: local-dir:{tmp_path}: " in missing
    assert "config.json" in missing
    assert "fetched" not in missing


def test_a_model_with_several_classifiers_or_none_is_refused() -> None:
    small = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 1}
    assert "several classifiers" in refusal("deit_tiny_distilled_patch16_224", args=small)
    headless = build("test_resnet", args={"num_classes": 0}, num_classes=None)
    with pytest.raises(UserError, match="Identity, not a linear layer"):
        get_head(headless)


def test_the_bundled_backbone_loads_with_its_own_classifier() -> None:
    model = build("bundled", pretrained=True, num_classes=None)
    assert get_head(model).out_features == 200
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    assert len(set(config["label_names"])) == 200
    assert input_config(model)["input_size"] == [3, 64, 64]
    weights = Path(timm_name("bundled").removeprefix("local-dir:")) / "model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert weights_sha256(model) == weights_sha256(build("bundled", pretrained=True, num_classes=3))
    assert weights_sha256(model) != weights_sha256(build("bundled", num_classes=3))


@pytest.mark.parametrize(("name", "size"), [*((name, None) for name in SMALL), ("test_vit", 64), ("bundled", 48)])
def test_the_input_config_needs_no_weights_and_is_json(name: str, size: int | None) -> None:
    config = input_config_by_name(name, size, {})
    assert config == input_config(build(name, image_size=size), size)
    assert json.loads(json.dumps(config)) == config
    assert set(config) == {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    assert size is None or config["input_size"] == [3, size, size]


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(70, 50), (31, 90)])
def test_stored_resize_then_crop_is_timms_own_transform(mode: str, interpolation: str, shape: tuple[int, int]) -> None:
    config: dict[str, Any] = {
        "input_size": [3, 32, 32],
        "interpolation": interpolation,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "crop_pct": 0.875,
        "crop_mode": mode,
    }
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resize, crop = evaluation_transform(config)
    stored = torch.tensor(np.asarray(resize(image))).permute(2, 0, 1)
    cropped: Tensor = crop(stored)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    expected = create_transform(**config, is_training=False)(image)
    assert torch.allclose((cropped / 255 - mean) / std, expected, atol=1e-6)


def test_the_hash_of_the_weights_ignores_the_classifier_and_nothing_else() -> None:
    model = build("test_resnet")
    first = weights_sha256(model)
    assert weights_sha256(build("test_resnet", num_classes=9)) == first
    nn.init.ones_(get_head(model).weight)
    assert weights_sha256(model) == first
    for name in ("layer1.0.conv1.weight", "layer1.0.bn1.running_mean"):
        changed = build("test_resnet")
        changed.state_dict()[name].flatten()[0] += 1e-6
        assert weights_sha256(changed) != first
    renamed = build("test_resnet")
    renamed.add_module("other", nn.Identity())
    assert weights_sha256(renamed) == first
    assert weights_sha256(model.double()) != first


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A hub at a loopback port on which nothing listens, an empty cache, and no waiting between attempts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ask(port, tmp_path, monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield port
    huggingface_hub.close_session()


@pytest.fixture
def hub(no_hub: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback with one small model, under both names."""
    assert no_hub
    save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "served"), safe_serialization=True)
    with hub_server() as server:
        for repository in REPOSITORIES.values():
            server.publish(repository, tmp_path / "served")
        ask(server.port, tmp_path, monkeypatch)
        yield server


def assert_says_what_to_do(message: str, name: str) -> None:
    assert f"backbone.name: the weights of {name} can't be fetched" in message
    assert "HF_HOME" in message
    assert "local-dir:" in message
    assert "backbone.name: bundled, or backbone.pretrained: false" in message


REPOSITORIES = {"hf-hub:owner/name": "owner/name", "test_resnet.r160_in1k": "timm/test_resnet.r160_in1k"}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_weights_come_from_the_hub_through_timms_own_loading(name: str, hub: HubServer, tmp_path: Path) -> None:
    model = build(name, pretrained=True, num_classes=None)
    saved = timm.create_model(f"local-dir:{tmp_path / 'served'}", pretrained=True).state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert f"GET /{REPOSITORIES[name]}/resolve/main/model.safetensors" in hub.requested
    hub.requested.clear()
    assert get_head(build(name, pretrained=True)).out_features == 5  # from the cache: nothing is fetched again
    assert not any(request.startswith("GET") for request in hub.requested)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", REPOSITORIES)
def test_without_a_hub_the_error_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_says_what_to_do(refusal(name, pretrained=True), name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_says_what_to_do(refusal(name, pretrained=True), name)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_download_that_breaks_off_and_an_unknown_repository_say_what_to_do(name: str, hub: HubServer) -> None:
    hub.breaks_off = True
    assert_says_what_to_do(refusal(name, pretrained=True), name)
    hub.breaks_off = False
    hub.repositories.clear()
    assert_says_what_to_do(refusal(name, pretrained=True), name)


def test_channels_last_changes_no_output() -> None:
    for name, channels in (("test_resnet", 3), ("repvgg_a0", 3), ("repvgg_a0", 5)):
        model = timm.create_model(name, num_classes=3, in_chans=channels).eval()
        images = torch.randn(2, channels, 32, 32)
        expected = model(images)
        assert channels_last(model) is model
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last)
            for key, weight in model.named_parameters()
            if weight.dim() == 4 and weight.shape[1] > channels
        )
        torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)


def test_repvggs_stem_trains_on_a_cpu_without_avx512() -> None:
    """In a process of its own: torch reads the environment at import, and a crash would be a segmentation fault."""
    step = (
        "import timm, torch; from headstart.models.backbone import channels_last\n"
        "for channels in (3, 5):\n"
        "    model = channels_last(timm.create_model('repvgg_a0', num_classes=3, in_chans=channels).train())\n"
        "    images = torch.randn(4, channels, 64, 64).contiguous(memory_format=torch.channels_last)\n"
        "    model(images).sum().backward()"
    )
    only_avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", step], env={**os.environ, **only_avx2}, check=False)
    assert done.returncode == 0
