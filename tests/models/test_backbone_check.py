"""The check with which prepare and the doctor begin: what is refused, under which key, and what works."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.models import backbone_check
from headstart.models.backbone import create_backbone, features_of, get_head, head_name, set_head
from headstart.models.backbone_check import check_backbone, choose_side
from headstart.models.head import Head

RANDOM: dict[str, Any] = {"name": "test_resnet", "pretrained": False}


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_backbone(BackboneConfig(**{**RANDOM, **changes}))
    message = str(caught.value)
    assert "\n" not in message
    return message


def accepts(**changes: Any) -> bool:
    return check_backbone(BackboneConfig(**{**RANDOM, **changes})) is None


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", None),
        ("test_resnet", 100),
        ("test_vit", 64),
        ("pit_ti_224", 128),
        ("convit_tiny", 64),
        ("hiera_tiny_224", 128),
        ("mixer_s32_224", 160),
        ("gcvit_xxtiny", 128),
        ("twins_svt_small", 96),
        ("bundled", 48),
        ("resnet50_clip", 64),  # its classifier reads every place, and the logits are those of one
    ],
)
def test_sizes_that_timm_can_build_are_accepted(name: str, size: int | None) -> None:
    assert accepts(name=name, image_size=size)


@pytest.mark.parametrize(
    ("name", "shorter_side", "expected"),
    [
        ("resnet18", 100, 96),  # a multiple of 32 within what the images hold
        ("resnet18", 20, 64),  # two positions are left
        ("resnet18", 4000, None),  # its own, 224
        ("resnet18", 224, None),
        ("test_vit", 100, None),  # its weights are for one size
        ("inception_v3", 64, None),  # fails at that size
        ("inception_v3", 100, 96),
    ],
)
def test_auto_is_what_the_images_hold(name: str, shorter_side: int, expected: int | None) -> None:
    assert choose_side(name, {}, shorter_side) == expected


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("test_vit", 100, "use 96, 112, null (its own 160)"),
        ("twins_svt_small", 100, "use 96, 128, null (its own 224)"),  # it computes them, but is not saved for them
        ("test_convnext", 8, "use 32, null (its own 160)"),
        ("nest_tiny", 100, "use 96, 112, null (its own 224)"),
    ],
)
def test_a_size_that_a_model_can_not_read_is_refused_with_sizes_that_it_can(
    name: str, size: int, expected: str
) -> None:
    message = refusal(name=name, image_size=size)
    assert message.startswith(f"backbone.image_size: {size}: {name} fails (")
    assert message.endswith(expected)
    smaller = [int(word.strip(",")) for word in expected.split() if word.strip(",").isdigit()]
    assert all(accepts(name=name, image_size=each) for each in smaller)


@pytest.mark.parametrize("name", ["pit_ti_224", "mixer_s32_224", "gcvit_xxtiny"])
def test_weights_that_timm_can_not_resize_are_for_their_own_size_alone(name: str) -> None:
    message = refusal(name=name, pretrained=True, image_size=128)
    assert message.startswith("backbone.image_size: 128: ")
    assert message.endswith("its weights are for 224 px: use null, or backbone.pretrained: false")


@pytest.mark.parametrize("name", ["test_vit", "coat_tiny"])
def test_weights_that_timm_resizes_are_accepted_and_nothing_is_fetched(name: str) -> None:
    remark = check_backbone(BackboneConfig(name=name, image_size=128))
    assert remark is not None
    assert remark.startswith(f"the weights of {name} are not here yet: features will fetch them from timm/{name}.")


@pytest.mark.parametrize("name", ["cpubone_nano", "convit_tiny", "dla46x_c", "resnetv2_18"])
@torch.no_grad()
def test_unusual_but_linear_classifiers_read_the_features(name: str) -> None:
    model = create_backbone(name, pretrained=False, image_size=64, args={}, num_classes=3).eval()
    head, images = get_head(model), torch.rand(2, 3, 64, 64)
    set_head(
        model, Head(np.random.default_rng(0).normal(size=(3, head.in_features)).astype("f"), np.zeros(3, "f"), 0.1)
    )
    torch.testing.assert_close(head(features_of(model, images)), model(images), rtol=1e-4, atol=1e-4)
    assert model.get_submodule(head_name(model)) is head


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            "several classifiers (distilled ones do); choose another model, such as",
        ),
        ("levit_128s", "several classifiers"),
        ("repvit_m1", "a RepVitClassifier, not a linear layer with a bias; choose another model, such as resnet50"),
        ("volo_d1_224", "outputs are more than those of one linear classifier; choose another model, such as"),
    ],
)
def test_an_unusual_classifier_is_refused_with_models_that_work(name: str, reason: str) -> None:
    message = refusal(name=name)
    assert message.startswith("backbone.name: ")
    assert reason in message
    assert accepts(name=message.rsplit(" ", maxsplit=1)[1])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"global_pool": ""}, "remove it"),
        ({"features_only": True}, "remove it"),
        ({"output_stride": 7}, "AssertionError"),
        ({"layers": 3}, "remove it"),
        ({"widht": 3, "num_classes": 4}, "unexpected keyword argument 'widht'"),
        ({"pretrained": True}, "multiple values"),
    ],
)
def test_an_argument_that_makes_a_model_unusable_is_named(args: dict[str, Any], words: str) -> None:
    message = refusal(args=args)
    key, value = next(iter(args.items()))
    assert message.startswith(f"backbone.args.{key}: {value!r}: test_resnet fails (")
    assert words in message


def test_arguments_of_transformers_too() -> None:
    assert refusal(name="test_vit", args={"num_heads": 5}).startswith("backbone.args.num_heads: 5: ")
    assert refusal(name="test_vit", args={"act_layer": "nope"}).startswith("backbone.args.act_layer: 'nope': ")
    assert "write it as backbone.image_size" in refusal(name="convit_tiny", args={"img_size": 64})
    assert accepts(name="convit_tiny", args={"img_size": 64}, image_size=64)
    assert accepts(args={"num_classes": 5})
    overlay = {"pretrained_cfg_overlay": {"file": "gone.pth"}}
    assert "file: gone.pth: no such file" in refusal(args=overlay, pretrained=True)
    assert refusal(args={"features_only": True, "out_indices": [1]}).endswith("it works without them")


def test_a_rate_that_a_model_lacks_is_refused() -> None:
    assert refusal(name="vgg11", drop_path_rate=0.1).startswith("backbone.drop_path_rate: vgg11 has none (")
    assert accepts(drop_path_rate=0.1, drop_rate=0.1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "EOFError"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (pickle.dumps(UserError("runs code")), "weights_only"),
        ([1, 2], "must hold the weights of backbone.name"),
        ("test_vit", "Missing key(s) in state_dict"),
        ("ten classes", "size mismatch for fc.weight"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_that_can_not_be_loaded_is_named(folder: Path, content: Any, words: str, suffix: str) -> None:
    path = folder / f"weights{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None and suffix == ".pth":
        models = {"test_vit": ("test_vit", 1000), "ten classes": ("test_resnet", 10)}
        name, classes = models.get(str(content), ("", 0))
        torch.save(timm.create_model(name, num_classes=classes).state_dict() if name else content, path)
    elif content is not None:
        path.mkdir()
        words = "no such file"
    message = refusal(args={"checkpoint_path": path.name})
    assert message.startswith(f"backbone.args.checkpoint_path: {path.name}: ")
    assert words in message or suffix == ".safetensors"


@pytest.mark.usefixtures("folder")
def test_a_good_checkpoint_is_accepted() -> None:
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=10).state_dict()}, "ten.pth")
    assert accepts(args={"checkpoint_path": "ten.pth", "num_classes": 10})


def test_a_folder_that_timm_can_not_load_is_refused(folder: Path) -> None:
    save_for_hf(timm.create_model("test_resnet"), str(folder / "good"), safe_serialization=True)
    save_for_hf(timm.create_model("test_resnet", in_chans=1), str(folder / "grey"), safe_serialization=True)
    for name in ("without", "other", "foreign", "cut"):
        shutil.copytree("good", name)
    Path("without/model.safetensors").unlink()
    Path("cut/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    config = json.loads(Path("good/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "architecture": "test_vit"}))
    Path("foreign/config.json").write_text(json.dumps({"model_type": "vit"}))
    assert accepts(name="local-dir:good", pretrained=True)
    assert accepts(name="local-dir:grey", pretrained=True)  # its weights are spread over three channels
    for name, words in {
        "gone": "Config file not found: gone/config.json",
        "foreign": "its config.json is not timm's ('architecture'); write the model by timm's save_for_hf",
        "without": "its weights can't be loaded (No suitable checkpoints found",
        "other": "its weights can't be loaded (",
        "cut": "its weights can't be loaded (",
    }.items():
        message = refusal(name=f"local-dir:{name}", pretrained=True)
        assert message.startswith(f"backbone.name: local-dir:{name}: ")
        assert words in message


def test_names_that_timm_does_not_know_come_with_names_that_it_does() -> None:
    assert "did you mean resnet50," in refusal(name="ResNet50")
    assert "did you mean convnext_tiny," in refusal(name="convnext_tny")
    assert "did you mean resnet50." in refusal(name="resnet50.nonsense")
    assert "'hf-hub:timm/resnet50.a1_in1k'" in refusal(name="timm/resnet50.a1_in1k")
    without_weights = refusal(name="gmlp_ti16_224", pretrained=True)
    assert without_weights.startswith("backbone.pretrained: timm has no pretrained weights of gmlp_ti16_224: ")
    assert "gmlp_s16_224.ra3_in1k" in without_weights


def test_without_a_network_weights_that_are_not_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the weights of test_resnet can't be fetched") as caught:
        check_backbone(BackboneConfig(name="test_resnet"))
    assert "backbone.name: bundled, or backbone.pretrained: false" in str(caught.value)


def test_what_can_not_run_on_the_meta_device_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def features(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        devices.append(images.device.type)
        if images.is_meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return features_of(model, images)

    monkeypatch.setattr(backbone_check, "features_of", features)
    assert accepts()
    assert devices == ["meta", "cpu"]
