import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json, write_report
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.loader import evaluation_pixels
from headstart.evaluation.ood import write_ood_reference
from headstart.export import bundle_writer, parity
from headstart.export.formats import ModelFunction, onnx_model
from headstart.images.preprocess import Preprocessing
from headstart.inference.bundle import open_bundle
from headstart.models.backbone import WithFeatures, create_backbone, features_of, get_head, input_config
from headstart.models.head import Head, write_heads
from headstart.models.timm_checkpoint import load_timm, save_timm
from headstart.stages import export
from helpers.images import CLASSES, INPUT, params, sources, write_finetune, write_prepared

FIGURES: dict[str, Any] = {"accuracy": 0.75, "balanced_accuracy": 0.5, "macro_f1": 0.25, "nll": 1.125, "ece": 0.0625}
FIGURES |= {"intervals": {"accuracy": [0.5, 0.875]}}
CALIBRATION = {"temperature": 1.25, "before": {"ece": 0.0625}, "after": {"ece": 0.03125}}
CALIBRATION_ENTRIES = {
    "temperature": 1.25,
    "conformal": [{"method": "LAC", "level": 0.9, "threshold": 0.75}],
    "out_of_distribution": {"score": "a distance", "neighbour": 2, "references": 3, "thresholds": {"0.95": 0.5}},
}
TARGET_ENTRY = {"kind": "class", "spec": {}}
EVALUATION = {"pictures": 9, "classes": list(CLASSES), "models": {"probe": FIGURES, "finetune": FIGURES}}
ROUNDED = ["onnx", "onnx_fp16", "onnx_int8", "pt2"]
LOOSE = {"agreement": 0.5, "nll": 10.0}
"""For an untrained model, whose classes are as good as tied."""


def write_inputs() -> None:
    write_prepared(files=True)
    write_report("evaluate", EVALUATION)
    write_json(paths.TRUST, {"calibration": {"finetune": CALIBRATION, "probe": CALIBRATION}})
    write_json(paths.RUN_INFO, {"data_sha256": "d" * 64, "weights_sha256": "e" * 64})
    write_ood_reference({name: (CALIBRATION_ENTRIES, np.eye(3, dtype=np.float32)) for name in ("finetune", "probe")})
    write_finetune()


def run(changes: dict[str, object] | None = None) -> None:
    changes = {"export.license": "CC BY 4.0", "prepare.source": "imagefolder", **(changes or {})}
    export.run(params(changes).declared(export.PARAMS))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose model was exported in every format."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs()
        run({"export.formats": ROUNDED, "export.fp16": LOOSE, "export.int8": LOOSE})
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path) -> Path:
    """Another project, without an export; its ONNX export is a copy of the good one, whose path is returned."""
    monkeypatch.chdir(tmp_path)
    write_inputs()
    good = exported / "export" / "model.onnx"
    monkeypatch.setattr(bundle_writer, "traced", lambda _model, _size: None)
    monkeypatch.setattr(bundle_writer, "write_onnx", lambda _program, path, _metadata: shutil.copyfile(good, path))
    return good


def assert_nothing_was_written() -> None:
    assert not paths.EXPORT.exists()
    assert not list(Path().glob(".export*"))
    assert not (paths.REPORTS / "export.json").exists()


def assert_written_without(*failed: str, having: Sequence[str] = ()) -> None:
    """The bundle is whole, and has of the formats only timm's and those named."""
    files = {"pt2": "model.pt2", "onnx": "model.onnx", "onnx_fp16": "model.fp16.onnx", "onnx_int8": "model.int8.onnx"}
    whole = {"model.safetensors", "config.json", "reference.npy", "README.md", "LICENSE", "manifest.json"}
    assert {path.name for path in paths.EXPORT.iterdir()} == whole | {files[name] for name in having}
    assert set(open_bundle(paths.EXPORT).files) == {path.name for path in paths.EXPORT.iterdir()} - {"manifest.json"}
    card = (paths.EXPORT / "README.md").read_text()
    assert not [name for name in failed if f"`{files[name]}`" in card]
    report = read_json(paths.REPORTS / "export.json")
    assert (list(report["formats"]), list(report["failed"])) == (["timm", *having], list(failed))
    assert not list(Path().glob(".export*"))


def test_timm_loads_the_folder_with_all_that_it_needs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    assert {path.name for path in paths.EXPORT.iterdir()} == {
        "model.safetensors", "config.json", "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.pt2",
        "reference.npy", "README.md", "LICENSE", "manifest.json",
    }  # fmt: skip
    model: Any = timm.create_model("local-dir:export", pretrained=True).eval()
    assert input_config(model) == INPUT
    assert model.num_classes == len(CLASSES)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    trained = timm.create_model(f"local-dir:{paths.FINETUNE}", pretrained=True).eval()
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(inputs), trained(inputs))
    trained_config = read_json(paths.FINETUNE / "config.json")
    exported_config = read_json(paths.EXPORT / "config.json")
    assert exported_config["headstart"]["target"] == trained_config.pop("headstart_target") == TARGET_ENTRY
    added = {"headstart", "pretrained_cfg"}  # timm writes the classes' names there too
    assert {key: value for key, value in exported_config.items() if key not in added} == {
        key: value for key, value in trained_config.items() if key not in added
    }


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.pt2"])
def test_formats_take_any_batch(exported: Path, batch: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    trained = timm.create_model(f"local-dir:{paths.FINETUNE}", pretrained=True).eval()
    inputs = torch.randn(batch, 3, 32, 32)
    if name == "model.pt2":
        logits, features = torch.export.load(paths.EXPORT / name).module()(inputs)
    else:
        session = onnxruntime.InferenceSession(paths.EXPORT / name)
        logits, features = map(torch.from_numpy, session.run(["logits", "features"], {"pixels": inputs.numpy()}))
    with torch.no_grad():
        rounding = {"model.fp16.onnx": 1e-2, "model.int8.onnx": 0.3}.get(name, 1e-4)
        torch.testing.assert_close(logits, trained(inputs), atol=rounding, rtol=rounding)
        torch.testing.assert_close(features, features_of(trained, inputs), atol=rounding, rtol=rounding)


def test_an_onnx_file_alone_says_what_it_was_made_for(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "export" / "model.onnx")
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["headstart"])
    assert metadata == {"label_names": list(CLASSES), "input": INPUT, "target": TARGET_ENTRY}


def test_report_says_what_was_compared(exported: Path) -> None:
    report = read_json(exported / "reports" / "export.json")
    assert list(report["formats"]) == ["timm", "pt2", "onnx", "onnx_fp16", "onnx_int8"]
    for name in ("timm", "pt2", "onnx"):
        figures = report["formats"][name]
        assert max(figures["max_difference"], figures["noise_difference"]) <= report["tolerance"] == 1e-3
        assert figures["features_difference"] < 1e-5
        assert figures["top1_agreement"] == 1
    assert 0 < report["formats"]["onnx_fp16"]["max_difference"] < report["formats"]["onnx_int8"]["max_difference"]
    assert report["preparation"] == {
        "pictures": 10,
        "predict": 0,
        **dict.fromkeys(("stored", "ours"), pytest.approx(0, abs=1e-6)),
    }
    sizes = {path.name: path.stat().st_size for path in (exported / "export").iterdir()}
    assert report["files"] == sizes
    assert sizes["model.int8.onnx"] < 0.5 * sizes["model.onnx"]


def test_the_calibration_goes_with_the_model(exported: Path) -> None:
    entries = read_json(exported / "export" / "config.json")["headstart"]
    assert entries == {"format": 1, "input": INPUT, "features": 96} | CALIBRATION_ENTRIES | {"target": TARGET_ENTRY}
    np.testing.assert_array_equal(np.load(exported / "export" / "reference.npy"), np.eye(3))


def test_the_cards_front_matter_and_figures(exported: Path) -> None:
    card = (exported / "export" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front_matter = YAML(typ="safe").load(front)
    assert (front_matter["license"], front_matter["license_name"]) == ("other", "CC BY 4.0")
    assert front_matter["library_name"] == "timm"
    assert "| **this model** | 0.7500 | 0.5000 | 0.2500 | 1.1250 | 0.0625 | 0.500 to 0.875 |" in text
    assert "logits / 1.25" in text
    assert "the ECE was 0.062 without and 0.031 with it" in text
    assert "| validation | 10 |" in text
    assert f"`{'d' * 64}`" in text
    assert "`model.int8.onnx`" in text
    assert all(f"`{name}`" in text for name in CLASSES)
    assert "This model: CC BY 4.0\n" in (exported / "export" / "LICENSE").read_text()


def test_the_cards_examples_run(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    Image.effect_noise((50, 40), 60).save("image.jpg")
    examples = re.findall(r"```python\n(.+?)```", paths.EXPORT.joinpath("README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    names: dict[str, object] = {}
    for example in examples:
        assert len(example.splitlines()) <= 6
        exec(example, names)  # noqa: S102  (the example is what is tested)
    by_timm, by_onnxruntime = capsys.readouterr().out.split()
    assert by_timm == by_onnxruntime
    assert by_timm in CLASSES


@pytest.mark.usefixtures("project")
def test_the_probe_on_its_frozen_backbone_is_exported() -> None:
    backbone = create_backbone(
        "test_resnet", pretrained=False, image_size=None, args={}, num_classes=len(CLASSES)
    ).eval()
    weight = np.random.default_rng(0).normal(size=(len(CLASSES), 96)).astype(np.float32)
    write_heads([Head(weight, np.arange(4, dtype=np.float32), 1e-3)], 0)
    run({"export.from": "probe", "backbone.name": "test_resnet", "backbone.pretrained": False, "export.formats": []})
    model: Any = timm.create_model("local-dir:export", pretrained=True).eval()
    assert np.array_equal(get_head(model).weight.detach().numpy(), weight)
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(features_of(model, inputs), features_of(backbone, inputs))
    assert read_json(paths.REPORTS / "export.json")["model"] == "probe"
    assert "a linear head on the frozen backbone" in (paths.EXPORT / "README.md").read_text()


@pytest.mark.usefixtures("project")
def test_a_broken_timm_export_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(model: nn.Module, weights: Any, prepared: PreparedDataset, folder: Path, target: Any) -> None:
        save_timm(model, weights, prepared, folder, target)
        tensors = load_file(folder / "model.safetensors")
        save_file({name: -t if name == "fc.weight" else t for name, t in tensors.items()}, folder / "model.safetensors")

    monkeypatch.setattr(bundle_writer, "save_timm", flipped)
    with pytest.raises(UserError, match="timm: logits of random input differ"):
        run()
    assert_nothing_was_written()


def change_onnx(good: Path, change: Callable[[onnx.ModelProto], None]) -> Callable[..., None]:
    def write(_program: Any, path: Path, _metadata: Any) -> None:
        model = onnx.load(good)
        change(model)
        onnx.save(model, path)

    return write


def changed_weight(function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "model.fc.weight"]
        changed = np.ascontiguousarray(function(numpy_helper.to_array(weight)), np.float32)
        weight.CopyFrom(numpy_helper.from_array(changed, weight.name))

    return change


BROKEN = {
    "scaled": lambda weight: weight * np.float32(1.01),
    "not a number": lambda weight: weight * np.float32(np.nan),
    "labels permuted": lambda weight: weight[[1, 0, 2, 3]],
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_onnx_export_is_caught(project: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "write_onnx", change_onnx(project, changed_weight(BROKEN[how])))
    with pytest.raises(UserError, match="onnx: logits of random input differ"):
        run({"export.formats": ["onnx"]})
    assert_written_without("onnx")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "broken",
    [lambda pixels: pixels.transpose(2, 3), lambda pixels: pixels.flip(1), lambda pixels: pixels + 0.05],
    ids=["a transposed layout", "BGR", "a wrong mean"],
)
def test_a_format_that_reads_its_input_otherwise_is_caught(
    broken: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> ModelFunction:
        function = onnx_model(path)
        return lambda pixels: function(broken(pixels).contiguous())

    monkeypatch.setattr(bundle_writer, "onnx_model", wrong)
    with pytest.raises(UserError, match="onnx: logits of random input differ"):
        run({"export.formats": ["onnx"]})
    assert_written_without("onnx")


@pytest.mark.usefixtures("project")
def test_a_model_left_in_training_mode_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "load_timm", lambda folder: load_timm(folder).train())
    with pytest.raises(UserError, match="timm: logits of random input differ"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_the_error_names_the_first_image_that_differs_and_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def third_is_off(path: Path) -> ModelFunction:
        function, calls = onnx_model(path), iter(range(1000))

        def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = function(pixels)
            # The first call is the noise, the second finds out what memory an image takes.
            return logits + (0.5 if next(calls) == 4 else 0.0), features

        return run

    monkeypatch.setattr(bundle_writer, "onnx_model", third_is_off)
    prepared = PreparedDataset.open()
    third = sources(prepared)[prepared.rows("validation")[2]]
    with pytest.raises(UserError, match=rf"onnx, batch 1: .+ first is {re.escape(third)}: its logits by 0\.5,"):
        run({"export.formats": ["onnx"]})
    assert_written_without("onnx")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("bound", "moved"), [({"agreement": 0.9, "nll": 100.0}, "top class"), ({"agreement": 0.1, "nll": 1e-3}, "loss")]
)
def test_a_format_that_rounds_too_coarsely_is_caught(
    bound: dict[str, float], moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that differ in the top class of two of ten images, and so in the loss."""

    def coarse(path: Path) -> ModelFunction:
        function = onnx_model(path)

        def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = function(pixels)
            logits[0] = -logits[0]
            logits[-1] = logits[-1] + torch.arange(4)
            return logits, features

        return run if "fp16" in path.name else function

    monkeypatch.setattr(bundle_writer, "onnx_model", coarse)
    with pytest.raises(UserError, match=rf"onnx_fp16, batch 1: the outputs are beyond export\.fp16: .*{moved}"):
        run({"export.formats": ["onnx", "onnx_fp16"], "export.fp16": bound})
    assert_written_without("onnx_fp16", having=["onnx"])


@pytest.mark.usefixtures("project")
def test_a_format_that_cannot_be_made_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As a MaxViT's ONNX, of which the exporter's own message is 130 lines."""

    def fails(_program: Any, path: Path, _metadata: Any) -> None:
        path.write_text("half")
        path.with_name(f"{path.name}.data").write_text("half")
        logging.getLogger().warning("step 2 of 3")
        warnings.warn("step 2 of 3", stacklevel=1)
        print("step 2 of 3")
        raise ValueError("Cannot view a tensor\nlines of a graph")

    monkeypatch.setattr(bundle_writer, "write_onnx", fails)
    monkeypatch.setattr(torch.export, "save", lambda _program, path: path.write_text("a program"))
    model = load_timm(paths.FINETUNE)
    monkeypatch.setattr(bundle_writer, "load_program", lambda _path: WithFeatures(model))
    with pytest.raises(UserError) as caught:
        run({"export.formats": ["onnx", "onnx_int8", "pt2"]})
    assert str(caught.value).splitlines() == [
        "export.formats: export has timm, pt2, but not onnx, onnx_int8:",
        "  onnx: this model can't be converted to it: Cannot view a tensor",
        "  onnx_int8: is made from onnx",
        "Leave out what failed there, or choose another backbone.name",
    ]
    assert_written_without("onnx", "onnx_int8", having=["pt2"])
    assert "export.onnx" not in (paths.EXPORT / "README.md").read_text()
    assert "predict export/ image.jpg --device torch" in (paths.EXPORT / "README.md").read_text()
    assert "step" not in "".join(capfd.readouterr())
    assert "step" not in caplog.text


@pytest.mark.usefixtures("project")
def test_a_full_disk_is_not_taken_for_the_exporters_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:746] . open file failed: No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run({"export.formats": ["pt2"]})
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "changed", [{"label_names": ["dog", "cat", "owl", "yak"]}, {"pretrained_cfg": {"crop_pct": 1}}]
)
def test_a_config_that_says_something_else_is_caught(changed: dict[str, object]) -> None:
    path = paths.FINETUNE / "config.json"
    config = read_json(path)
    for key, value in changed.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    write_json(path, config)
    with pytest.raises(UserError, match=r"config\.json: (label_names|crop_pct) is"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_a_preparation_of_predict_that_differs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Preprocessing.of(INPUT)
    wrong = replace(right, mean=(0.5, 0.4, 0.31))
    monkeypatch.setattr(Preprocessing, "of", lambda _config: wrong)
    prepared = PreparedDataset.open()
    first = sources(prepared)[prepared.rows("validation")[0]]
    with pytest.raises(UserError, match=rf"{first} comes out otherwise as predict .+ differs by 0\.0333"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_stored_images_that_differ_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = evaluation_pixels
    monkeypatch.setattr(parity, "evaluation_pixels", lambda prepared, rows: right(prepared, rows).transpose(1, 2))
    with pytest.raises(UserError, match="comes out otherwise as stored"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_an_image_that_changed_since_is_metadata() -> None:
    prepared = PreparedDataset.open()
    name = sources(prepared)[prepared.rows("validation")[0]]
    Image.new("RGB", (40, 40)).save(Path("data/raw", name))
    with pytest.raises(UserError, match=f"export: {name} was changed since it was prepared: run `dvc repro`"):
        run()
    Path("data/raw", name).unlink()
    with pytest.raises(UserError, match=f"export: {name} can't be read any more: there is no such file"):
        run()


@pytest.mark.usefixtures("project")
def test_images_are_train_s_where_validation_has_none() -> None:
    shutil.rmtree(paths.PREPARED)
    write_prepared({"train": 7, "validation": 0, "test": 2}, files=True)
    run({"export.pictures": 5, "export.formats": []})
    report = read_json(paths.REPORTS / "export.json")
    assert report["preparation"]["pictures"] == 5
    assert report["preparation"]["stored"] is None


def test_images_are_chosen_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared()
    validation, labels = prepared.rows("validation"), read_values("validation")
    for count, places in ((3, [0, 4, 9]), (100, list(range(10)))):
        rows, classes = parity.comparison_images(prepared, count)
        assert rows.tolist() == validation[places].tolist()
        assert classes.tolist() == labels[places].tolist()
