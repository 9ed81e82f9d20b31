"""Backbones for images of other than three bands: what their first layer is made of, and how they are saved."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.data.dataset import PreparedDataset
from headstart.export.formats import load_program, onnx_model, traced, write_onnx
from headstart.inference.bundle import BUNDLE_MANIFEST, Bundle, write_manifest
from headstart.inference.bundle_config import BundleConfig
from headstart.inference.torch_runtime import open_torch
from headstart.models.backbone import (
    channels_last,
    create_backbone,
    features_of,
    input_config,
    input_config_by_name,
    weights_sha256,
)
from headstart.models.backbone_check import check_backbone
from headstart.models.stem import stem_layers
from headstart.models.timm_checkpoint import load_timm, save_timm
from headstart.targets.classes import Classes

BANDS, RGB = 13, [4, 3, 2]
AT = [band - 1 for band in RGB]
SPREAD = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet", "repvgg_a0"]
EXACT = [("resnet18", 32), ("tf_efficientnet_lite0", 32), ("test_vit", None), ("test_vit", 64), ("test_convnext", 64)]
EXACT += [("bundled", None)]


@pytest.fixture(autouse=True)
def _without_timms_remarks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def saved(name: str, folder: Path, **args: Any) -> str:
    """Save a model of random weights; return its name for timm. ``bundled`` stays what it is."""
    if name == "bundled":
        return name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **args)
        for module in model.modules():  # of which the first outputs would be all alike
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def build(name: str, **changes: Any) -> nn.Module:
    return create_backbone(name, **{"pretrained": True, "image_size": None, "args": {}, **changes}).eval()


def refusal(name: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(name, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(bands: int, side: int = 64) -> Tensor:
    return torch.randn(2, bands, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", SPREAD)
def test_weights_are_spread_as_timm_does(name: str, channels: int, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    expected = timm.create_model(folder, pretrained=True, in_chans=channels).state_dict()
    state = build(folder, in_chans=channels).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize(("name", "size"), EXACT)
@torch.inference_mode()
def test_with_rgb_the_other_bands_change_nothing(name: str, size: int | None, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    colours, bands = build(folder, image_size=size), build(folder, image_size=size, in_chans=BANDS, rgb=RGB)
    side = input_config(colours, size)["input_size"][-1]
    images = noise(BANDS, side)
    expected, logits = colours(images[:, AT]), bands(images)
    assert expected.std() > 1e-3
    # Sums of other lengths are added up in another order: in float32 that is seen.
    torch.testing.assert_close(logits, expected, rtol=0, atol=float(1e-5 * expected.abs().max()))
    images, colours, bands = images.double(), colours.double(), bands.double()
    expected = colours(images[:, AT])
    torch.testing.assert_close(bands(images), expected, rtol=0, atol=1e-6)
    images[:, [each for each in range(BANDS) if each not in AT]] = 0
    torch.testing.assert_close(bands(images), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(bands(images.flip(1)), expected, atol=1e-4)  # so it does see the bands of rgb


def test_all_layers_that_read_the_image_are_adapted(tmp_path: Path) -> None:
    folder = saved("repvgg_a0", tmp_path)
    own, made = build(folder), build(folder, in_chans=BANDS, rgb=RGB)
    assert len(stem_layers(made)) == 2
    for layer in stem_layers(made):
        weight, expected = (model.state_dict()[f"{layer}.weight"] for model in (made, own))
        assert torch.equal(weight[:, AT], expected)
        assert weight.count_nonzero() == expected.count_nonzero()


def test_the_order_of_three_bands_is_rgbs_too() -> None:
    images = noise(3)
    with torch.inference_mode():
        expected, logits = build("bundled")(images.flip(1)), build("bundled", rgb=[3, 2, 1])(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert weights_sha256(build("bundled", rgb=[3, 2, 1])) != weights_sha256(build("bundled"))


@torch.inference_mode()
def test_pixels_moved_into_the_channels_first_keep_their_places(tmp_path: Path) -> None:
    folder = saved("tresnet_m", tmp_path, layers=(1, 1, 1, 1), width_factor=0.25)
    colours, bands, grey = build(folder), build(folder, in_chans=5, rgb=[5, 2, 1]), build(folder, in_chans=1)
    images = noise(5, 32).double()
    expected = colours.double()(images[:, [4, 1, 0]])
    torch.testing.assert_close(bands.double()(images), expected, rtol=0, atol=1e-6)
    same = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey.double()(images[:, :1]), colours(same), rtol=0, atol=1e-6)


def test_a_checkpoint_is_adapted_too(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    args = {"checkpoint_path": str(tmp_path / "seven.pth"), "num_classes": 7}
    made = build("test_resnet", pretrained=False, args=args, in_chans=BANDS, rgb=RGB).state_dict()
    stem = f"{stem_layers(model)[0]}.weight"
    for name, value in model.state_dict().items():
        assert torch.equal(made[name][:, AT] if name == stem else made[name], value)
    assert made[stem].count_nonzero() == model.state_dict()[stem].count_nonzero()


def test_weights_for_these_bands_are_taken_as_they_are_and_spread_over_others(tmp_path: Path) -> None:
    folder = saved("test_resnet", tmp_path, in_chans=4)
    same, three, own = (build(folder, in_chans=channels).state_dict() for channels in (4, 3, None))
    stem = f"{stem_layers(build(folder))[0]}.weight"
    assert all(torch.equal(value, own[name]) for name, value in same.items())
    torch.testing.assert_close(three[stem], same[stem][:, :3] * 4 / 3)
    assert "weights are for 4 channels, not for colours: set it to null" in refusal(folder, in_chans=4, rgb=[1, 2, 3])


def test_random_weights_are_drawn_for_the_bands() -> None:
    random = {"pretrained": False, "in_chans": 5}
    states = [build("test_resnet", **random, **given).state_dict() for given in ({}, {"rgb": [1, 2, 3]}, {"seed": 1})]
    stem = f"{stem_layers(build('test_resnet', **random))[0]}.weight"
    assert states[0][stem].shape[1] == 5
    assert (states[0][stem].flatten(2).std((0, 2)) > 0.01).all()
    assert torch.equal(states[0][stem], states[1][stem])
    assert not torch.equal(states[0][stem], states[2][stem])


def test_what_can_not_be_adapted_is_refused(tmp_path: Path) -> None:
    folder = saved("test_nfnet", tmp_path)
    message = refusal(folder, in_chans=5, rgb=[1, 2, 3])
    assert message.startswith(
        f"backbone.name: {folder}: its first layer can't be made for images of 5 channels (it stand"
    )
    assert "backbone.rgb must be null" in message
    for name, reason in (
        ("naflexvit_base_patch16_parfac_gap", "it is no convolution"),
        ("csatv2", "timm can't adapt it"),
    ):
        with pytest.raises(UserError, match=rf"{name}: .* of 5 channels \({reason}\): .* other prepare.channels"):
            check_backbone(BackboneConfig(name=name), 5)
    assert refusal("bundled", args={"in_chans": 1}).startswith("backbone.args.in_chans: 1: remove it")
    assert "images have 2 bands" in refusal("bundled", in_chans=2, rgb=[1, 2, 3])
    assert "images have 1 band;" in refusal("bundled", in_chans=1, rgb=[1, 2, 3])
    assert "name each once" in refusal("bundled", in_chans=5, rgb=[1, 1, 3])


def test_the_check_before_the_work_knows_the_bands() -> None:
    def check(in_chans: int, **changes: Any) -> str | None:
        return check_backbone(BackboneConfig(**{"name": "bundled", "rgb": RGB, **changes}), in_chans)

    assert check(BANDS) is None
    assert "weights of test_vit are not here yet" in str(check(BANDS, name="test_vit"))
    assert check(BANDS, name="repvgg_a0", pretrained=False, rgb=None) is None
    for in_chans, changes, words in (
        (3, {}, "backbone.rgb: [4, 3, 2]: images have 3 bands"),
        (BANDS, {"pretrained": False}, "backbone.rgb: [4, 3, 2]: random weights know no colours"),
        (BANDS, {"name": "test_nfnet"}, "backbone.name: test_nfnet: its first layer can't be made"),
        (BANDS, {"args": {"in_chans": BANDS}}, "backbone.args.in_chans: 13: remove it"),
    ):
        with pytest.raises(UserError) as caught:
            check(in_chans, **changes)
        assert str(caught.value).startswith(words)


def test_the_config_has_a_mean_and_a_deviation_for_each_band() -> None:
    own = input_config_by_name("bundled", None, {})
    config = input_config_by_name("bundled", 48, {}, BANDS, RGB)
    assert config == input_config(build("bundled", image_size=48, in_chans=BANDS, rgb=RGB), 48)
    assert config["input_size"] == [BANDS, 48, 48]
    for key in ("mean", "std"):
        assert [config[key][band] for band in AT] == own[key]
        others = [config[key][band] for band in range(BANDS) if band not in AT]
        assert others == pytest.approx([sum(own[key]) / 3] * (BANDS - 3))
        assert input_config_by_name("bundled", None, {}, 1)[key] == pytest.approx([sum(own[key]) / 3])
        assert input_config_by_name("bundled", None, {}, 3)[key] == own[key]


def test_the_hash_of_the_weights_knows_the_bands() -> None:
    given: list[dict[str, Any]] = [{}, {"in_chans": 5}, {"in_chans": 6}, {"in_chans": 5, "rgb": [1, 2, 3]}]
    given.append({"in_chans": 5, "rgb": [3, 2, 1]})
    assert len({weights_sha256(build("bundled", **each)) for each in given}) == len(given)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@torch.inference_mode()
def test_what_is_saved_computes_the_same_for_timm_and_in_each_format(name: str, tmp_path: Path) -> None:
    model = create_backbone(name, pretrained=False, image_size=64, args={}, num_classes=3, in_chans=5).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(model.get_classifier().weight, std=0.1)  # type: ignore[operator]  # for logits of about 1
    config = {**input_config(model, 64), "mean": [0.1, 0.2, 0.3, 0.4, 0.5], "std": [0.5, 0.4, 0.3, 0.2, 0.1]}
    prepared = PreparedDataset(Path(), Classes(["a", "b", "c"]), {"input": config}, "")
    folder = tmp_path / "model"
    save_timm(channels_last(model), model.state_dict(), prepared, folder)
    again, images = load_timm(folder), noise(5)
    expected = model(images)
    torch.testing.assert_close(again(images), expected, rtol=0, atol=1e-5)
    assert input_config(again) == config
    further = create_backbone(
        f"local-dir:{folder}", pretrained=True, image_size=64, args={}, num_classes=3, in_chans=5
    ).eval()
    torch.testing.assert_close(features_of(further, images), features_of(model, images), rtol=0, atol=1e-5)

    program = traced(again, (5, 64, 64))
    torch.export.save(program, tmp_path / "model.pt2")
    write_onnx(program, tmp_path / "model.onnx", {})
    write_manifest(folder)
    written = read_json(folder / "config.json")
    about = BundleConfig(name, written["model_args"], prepared.target, {}, config, model.num_features, {}, [], None)  # type: ignore[arg-type]
    in_torch = open_torch(Bundle(folder, read_json(folder / BUNDLE_MANIFEST)["files"], about), "cpu")
    assert written["model_args"]["in_chans"] == 5
    torch.testing.assert_close(torch.tensor(in_torch(images.numpy())[0]), expected, rtol=0, atol=1e-5)
    for function in (load_program(tmp_path / "model.pt2"), onnx_model(tmp_path / "model.onnx")):
        torch.testing.assert_close(function(images)[0], expected, rtol=0, atol=1e-5)
