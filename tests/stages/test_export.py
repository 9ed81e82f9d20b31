import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headstart.ground import artifacts
from headstart.ground.errors import UserError
from headstart.ground.reference import write_reference
from headstart.libraries.backbone import input_config
from headstart.libraries.onnx_export import onnx_model
from headstart.stages import export
from pictures import CLASSES, INPUT, params, sources, write_finetune, write_prepared

FIGURES: dict[str, Any] = {"accuracy": 0.75, "balanced_accuracy": 0.5, "macro_f1": 0.25, "nll": 1.125, "ece": 0.0625}
FIGURES |= {"intervals": {"accuracy": [0.5, 0.875]}}
TRUST = {
    "calibration": {"finetune": {"temperature": 1.25, "before": {"ece": 0.0625}, "after": {"ece": 0.03125}}},
    "conformal": [{"method": "LAC", "level": 0.9, "threshold": 0.75, "coverage": 0.875}],
    "out_of_distribution": {
        "score": "a distance",
        "neighbour": 2,
        "references": 3,
        "thresholds": {"0.95": 0.5},
        "flagged": {"0.95": 0.0},
    },
}
EVALUATION = {"pictures": 9, "classes": list(CLASSES), "models": {"probe": FIGURES, "finetune": FIGURES}}


def write_inputs() -> nn.Module:
    write_prepared()
    artifacts.write_report("evaluate", EVALUATION)
    artifacts.write_json(export.TRUST, TRUST)
    write_reference(np.eye(3, dtype=np.float32))
    return write_finetune()


def run(changes: dict[str, object] | None = None) -> None:
    export.run(params({"export.license": "CC BY 4.0", **(changes or {})}).declared(export.PARAMS))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose model was exported, as it is: the one export of these tests."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs()
        run()
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path) -> Path:
    """Another project in which nothing was exported; its ONNX export is a copy of the good one."""
    monkeypatch.chdir(tmp_path)
    write_inputs()
    good = exported / "export" / "model.onnx"
    monkeypatch.setattr(export, "write_onnx", lambda _model, path, _size: shutil.copyfile(good, path))
    return good


def assert_nothing_was_written() -> None:
    assert not artifacts.EXPORT.exists()
    assert not list(Path().glob(".export*"))
    assert not (artifacts.REPORTS / "export.json").exists()


def test_timm_loads_the_folder_with_all_that_it_needs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    assert {path.name for path in artifacts.EXPORT.iterdir()} == {
        "model.safetensors", "config.json", "model.onnx", "reference.safetensors", "README.md",
    }  # fmt: skip
    model: Any = timm.create_model("local-dir:export", pretrained=True).eval()
    assert input_config(model) == INPUT
    assert model.num_classes == len(CLASSES)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    trained = timm.create_model(f"local-dir:{artifacts.FINETUNE}", pretrained=True).eval()
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(inputs), trained(inputs))


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_takes_any_batch(exported: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    trained = timm.create_model(f"local-dir:{artifacts.FINETUNE}", pretrained=True).eval()
    inputs = torch.randn(batch, 3, 32, 32)
    session = onnxruntime.InferenceSession("export/model.onnx")
    [logits] = session.run(["logits"], {"pixels": inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, trained(inputs).numpy(), atol=1e-4)


def test_report_says_what_was_compared(exported: Path) -> None:
    report = artifacts.read_json(exported / "reports" / "export.json")
    assert report["pictures"] == 10
    assert [figures["format"] for figures in report["formats"]] == ["timm", "onnx_batch_1", "onnx_batch_32"]
    for figures in report["formats"]:
        assert figures["max_difference"] <= report["tolerance"] == 1e-3
        assert figures["top1_agreement"] == 1
    sizes = {entry["file"]: entry["bytes"] for entry in report["files"]}
    assert sizes == {path.name: path.stat().st_size for path in (exported / "export").iterdir()}


def test_what_tells_how_sure_it_is_goes_with_the_model(exported: Path) -> None:
    told = artifacts.read_json(exported / "export" / "config.json")["headstart"]
    assert told == {
        "temperature": 1.25,
        "conformal": [{"method": "LAC", "level": 0.9, "threshold": 0.75}],
        "out_of_distribution": {"score": "a distance", "neighbour": 2, "references": 3, "thresholds": {"0.95": 0.5}},
    }
    written = load_file(exported / "export" / "reference.safetensors")
    assert torch.equal(written["features"], torch.eye(3))


def test_the_cards_front_matter_and_figures(exported: Path) -> None:
    card = (exported / "export" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front_matter = YAML(typ="safe").load(front)
    assert front_matter["license"] == "CC BY 4.0"
    assert front_matter["library_name"] == "timm"
    assert "| this model | 0.7500 | 0.5000 | 0.2500 | 1.1250 | 0.0625 | 0.500 to 0.875 |" in text
    assert "logits / 1.25" in text
    assert "the ECE was 0.062 without and 0.031 with it" in text
    assert "| validation | 10 |" in text
    assert all(f"`{name}`" in text for name in CLASSES)


def test_the_cards_examples_run(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    Image.effect_noise((50, 40), 60).save("picture.jpg")
    examples = re.findall(r"```python\n(.+?)```", artifacts.EXPORT.joinpath("README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    names: dict[str, object] = {}
    for example in examples:
        assert len(example.splitlines()) <= 6
        exec(example, names)  # noqa: S102  (the example is what is tested)
    by_timm, by_onnxruntime = capsys.readouterr().out.split()
    assert by_timm == by_onnxruntime
    assert by_timm in CLASSES


@pytest.mark.usefixtures("project")
def test_a_broken_timm_export_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = export.write_timm

    def flipped(folder: Path) -> None:
        copy(folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({name: -t if name == "fc.weight" else t for name, t in tensors.items()}, folder / "model.safetensors")

    monkeypatch.setattr(export, "write_timm", flipped)
    with pytest.raises(UserError, match=r"timm: the logits of 10 of 10 pictures differ .+ \w+/\d+\.png"):
        run()
    assert_nothing_was_written()


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_broken_onnx_export_is_caught(project: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(_model: nn.Module, path: Path, _size: tuple[int, int, int]) -> None:
        model = onnx.load(project)
        [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "fc.weight"]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_onnx", scaled)
    with pytest.raises(UserError, match="onnx_batch_1: the logits of"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_a_model_left_in_training_mode_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    load = export.load_timm
    monkeypatch.setattr(export, "load_timm", lambda folder: load(folder).train(mode=folder.name.endswith(".partial")))
    with pytest.raises(UserError, match="timm: the logits of"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_the_error_names_the_first_picture_that_differs_and_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def third_is_off(path: Path) -> Callable[[Tensor], Tensor]:
        logits, calls = onnx_model(path), iter(range(1000))
        return lambda inputs: logits(inputs) + (0.5 if next(calls) == 2 else 0.0)

    monkeypatch.setattr(export, "onnx_model", third_is_off)
    prepared = artifacts.Prepared.open()
    third = sources(prepared)[prepared.rows("validation")[2]]
    with pytest.raises(UserError, match=rf"1 of 10 pictures .+ the first is {re.escape(third)}, by 0\.5\."):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "changed", [{"label_names": ["dog", "cat", "owl", "yak"]}, {"pretrained_cfg": {"crop_pct": 1}}]
)
def test_a_config_that_says_something_else_is_caught(changed: dict[str, object]) -> None:
    path = artifacts.FINETUNE / "config.json"
    config = artifacts.read_json(path)
    for key, value in changed.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    artifacts.write_json(path, config)
    with pytest.raises(UserError, match=r"config\.json: (label_names|crop_pct) is"):
        run()
    assert_nothing_was_written()


@pytest.mark.usefixtures("project")
def test_pictures_are_train_s_where_validation_has_none() -> None:
    shutil.rmtree(artifacts.PREPARED)
    write_prepared({"train": 7, "validation": 0, "test": 2})
    run({"export.pictures": 5})
    assert artifacts.read_json(artifacts.REPORTS / "export.json")["pictures"] == 5
