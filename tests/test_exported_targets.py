"""Every target from a trained model to the answers of `headstart predict` and the service, by the exported bundle."""

import ast
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from timm.data.transforms_factory import create_transform

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json, write_report
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.evaluation.ood import write_ood_reference
from headstart.export import bundle_writer
from headstart.export.checkpoint import export_checkpoint
from headstart.export.formats import onnx_model
from headstart.inference.predictor import Predictor
from headstart.inference.server import Limits, application
from headstart.inference.writers import output_names, output_record, text_writer
from headstart.models.backbone import WithFeatures
from headstart.models.timm_checkpoint import load_timm, read_target
from headstart.stages import export
from headstart.targets.number import CLOSE, QUANTILES
from headstart.targets.target import Answer
from helpers.command import headstart
from helpers.images import INPUT, params, write_finetune, write_prepared

KINDS = ["labels", "number", "quantiles", "grade"]


def write_project(kind: str) -> None:
    """Write what the stages before export do, of an untrained model whose outputs are scaled to be of some use."""
    prepared = write_prepared(
        {"train": 12, "validation": 40, "test": 2}, files=True, kind=kind.replace("quantiles", "number")
    )
    target: Any = prepared.target
    if kind == "quantiles":
        target = replace(target, quantiles=QUANTILES)
    model = write_finetune(target=target)
    with torch.inference_mode():
        outputs = model(Normalize(INPUT)(evaluation_pixels(prepared, prepared.rows("validation")))).numpy()
    values = read_values("validation")
    levels = target.conformal(outputs, values)
    ood = {"score": "a distance", "neighbour": 2, "references": 3, "thresholds": {"0.95": 0.5}}
    entries = {"target": {"kind": target.kind, "spec": target.spec()}} | target.fit(outputs, values)
    entries |= {"temperature": 1.5} if "temperature" in entries else {}  # the best one is 1, as it was not trained
    entries |= {"conformal": levels, "out_of_distribution": ood}
    write_ood_reference({"finetune": (entries, np.eye(96, dtype=np.float32)[:3])})
    figures: dict[str, Any] = dict.fromkeys(target.measures, 0.5)
    figures["intervals"] = {name: [0.25, 0.75] for name in target.measures}
    write_report("evaluate", {"pictures": 2, "classes": prepared.classes, "models": {"finetune": figures}})
    write_json(paths.TRUST, {"calibration": {}})
    write_json(paths.RUN_INFO, {"data_sha256": "d" * 64, "weights_sha256": "e" * 64})


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module", params=KINDS)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, onnx_files: Path) -> Path:
    """A project with an export; untrained models of as many outputs are the same, and so is their ONNX file."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(request.param)
        written = onnx_files / f"{read_target(paths.FINETUNE).outputs}.onnx"
        if written.exists():
            patch.setattr(bundle_writer, "traced", lambda _model, _size: None)
            patch.setattr(bundle_writer, "write_onnx", lambda _program, path, _about: shutil.copyfile(written, path))
        run()
        shutil.copyfile("export/model.onnx", written)
    return folder


@pytest.fixture(autouse=True)
def in_project(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "project" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("project"))


def run(changes: Mapping[str, object] | None = None) -> None:
    all_of_them = {"export.formats": ["onnx"], "prepare.source": "imagefolder", **(changes or {})}
    export.run(params(all_of_them).declared(export.PARAMS))


def images() -> list[Path]:
    return sorted(Path("data/raw").rglob("*.png"))[::4]


def answers(level: int = 0, *, calibrated: bool = False) -> list[Answer]:
    """What the target says of the trained model's own outputs, from the image files on, by timm's transform."""
    data_config: dict[str, Any] = {**INPUT}
    transform, target = create_transform(**data_config, is_training=False), read_target(paths.FINETUNE)
    with torch.inference_mode():
        model = load_timm(paths.FINETUNE)
        outputs = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in images()])).numpy()
    fitted = read_json(paths.OOD_REFERENCE / "finetune.json")
    entries = fitted if calibrated else target.uncalibrated(fitted)
    return target.answers(outputs, entries, fitted["conformal"][level])


def close(found: Any, expected: Any) -> None:
    """Compare, numbers to 1e-3 of them: in float32 the arithmetic of the runtimes differs."""
    if isinstance(expected, dict):
        close(sorted(found.items()), sorted(expected.items()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            close(*pair)
    else:
        assert found == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("device", ["cpu", "torch"])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.usefixtures("project")
def test_a_prediction_is_what_the_target_answers(device: str, level: int) -> None:
    predictor = Predictor("export", device=device, conformal=[0.9, 0.95][level])
    target: Any = read_target(paths.FINETUNE)
    assert predictor.bundle.config.target == target
    for path, answer in zip(images(), answers(level), strict=True):
        found = predictor(path)
        fields = target.prediction(answer)
        assert {"labels", "numbers", "label"} & fields.keys()
        for field, expected in fields.items():
            if field == "numbers":
                close([(each.name, each.value, each.unit, each.interval) for each in found.numbers or []], [
                    (each.name, each.value, each.unit, each.interval) for each in expected
                ])  # fmt: skip
                assert (found.value, found.unit) == (found.numbers[0].value, "lux")  # type: ignore[index]
                assert found.interval[0] <= found.value <= found.interval[1]
            else:
                close(getattr(found, field), expected[:5] if field == "top" else expected)
        assert found.ood_distance is not None


@pytest.mark.usefixtures("project")
def test_calibrated_answers_are_the_same_with_other_probabilities() -> None:
    target = read_target(paths.FINETUNE)
    if not target.fit(np.zeros((1, target.outputs)), read_values("train")[:1]):
        with pytest.raises(UserError, match="has no temperature, as numbers have no probabilities: omit --calibrated"):
            Predictor("export", calibrated=True)
        return
    plain, predictor = Predictor("export"), Predictor("export", calibrated=True)
    for path, answer in zip(images(), answers(calibrated=True), strict=True):
        expected, found, raw = target.prediction(answer), predictor(path), plain(path)
        close(found.top, expected["top"])
        assert found.top != raw.top
        close(found.labels if "labels" in expected else found.label, expected.get("labels") or expected.get("label"))
        assert (found.label, *sorted(found.prediction_set or [])) == (raw.label, *sorted(raw.prediction_set or []))
        assert found.labels is None or (raw.labels is not None and found.labels.keys() == raw.labels.keys())


@pytest.mark.usefixtures("project")
def test_what_is_no_option_of_a_target_is_refused_in_one_line() -> None:
    for option, value in (("--conformal-method", "APS"), ("--conformal", "0.5")):
        done = headstart("predict", "export", "data/raw", option, value)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        available = r"it has 0\.9 by (CRC|split|CQR|OAPS), "
        assert re.match(rf"error: export has no conformal sets or intervals of {value}: {available}", done.stderr)
    done = headstart("predict", "export", "data/raw", "--top", "2")
    if "top" in read_target(paths.FINETUNE).answer_fields:
        assert done.exit_code == 0
    else:
        refused = "error: export answers with all of its numbers, none is likeliest: omit --top\n"
        assert (done.exit_code, done.stderr) == (1, refused)


COLUMNS = {
    "labels": ["labels", "label_1", "probability_1", "label_2", "probability_2", "label_3", "probability_3", "set"],
    "number": ["name", "value", "unit", "low", "high"],
    "grade": [*(f"{name}{i}" for i in ("", "_2", "_3", "_4") for name in ("label", "probability")), "set"],
}


@pytest.mark.usefixtures("project")
def test_all_formats_say_what_the_predictor_says(tmp_path: Path) -> None:
    names, target, predictor = [str(path) for path in images()], read_target(paths.FINETUNE), Predictor("export")
    Path("bad.png").write_text("no image")
    files = [tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "parquet", "csv")]
    for file in files:
        done = headstart("predict", "export", *names, "bad.png", "--out", str(file))
        assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    for path, line in zip(names, lines, strict=False):
        close(line, json.loads(json.dumps(output_record(predictor(path), target))))
    assert {name for name, value in lines[-1].items() if value} == {"picture", "error"}
    for line, row in zip(lines, pq.read_table(files[1]).to_pylist(), strict=True):
        row["top"] = [[*each.values()] for each in row.get("top", [])]
        row["labels"] = dict(row["labels"]) if row.get("labels") is not None else None
        assert {name: row[name] for name in line} == line
    rows = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert list(rows[0]) == ["picture", *COLUMNS[target.kind], "distance", "unusual", "error"]
    for line, row in zip(lines[:-1], rows, strict=False):
        assert [json.loads(row[name]) for name in ("labels", "set") if name in line] == [
            line[name] for name in ("labels", "set") if name in line
        ]
        second = [row["label_2"], float(row["probability_2"])] if "top" in line else None
        assert second == (line["top"][1] if "top" in line else None)
        for number in line.get("numbers", []):
            cells = [row["name"], float(row["value"]), row["unit"], [float(row["low"]), float(row["high"])]]
            assert cells == [*number.values()]
    assert {name for name, value in rows[-1].items() if value} == {"picture", "error"}


@pytest.mark.usefixtures("project")
def test_the_service_answers_as_the_predictor() -> None:
    target, predictor = read_target(paths.FINETUNE), Predictor("export")

    async def ask() -> None:
        app = application(predictor, Limits(body_bytes=10**6, images=50, seconds=60, threads=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            health = (await client.get("/health")).json()
            assert health == {"status": "ok", "model": "test_resnet", target.nouns: [*target.names]}
            described = (await client.get("/openapi.json")).json()["components"]["schemas"]["Prediction"]["properties"]
            assert list(described) == list(output_names(target).values())
            for path in images()[:3]:
                answer = await client.post("/predict", files=[("file", (str(path), path.read_bytes()))])
                assert answer.json() == [json.loads(json.dumps(output_record(predictor(path), target)))]
            answer = await client.post("/predict", files=[("file", ("bad.png", b"no image"))])
            assert (answer.status_code, list(answer.json()[0])) == (422, list(output_names(target).values()))

    anyio.run(ask)


@pytest.mark.usefixtures("project")
def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    write = text_writer(sys.stdout, {})
    for path in images():
        write(Predictor("export")(path))
    shown = {
        "labels": r"((dark|bright|even) \d+\.\d%(, )?)+|no label",
        "number": r"-?\d+(\.\d+)? lux \(-?\d+(\.\d+)? to -?\d+(\.\d+)?\)",
        "grade": r"((cat|dog|owl|yak) \d+\.\d%(, )?){4}",
    }[read_target(paths.FINETUNE).kind]
    sets = r"(  \|  set: (\w+(, )?)+)?(  \|  unusual: .*)?"
    for line, path in zip(capsys.readouterr().out.splitlines(), images(), strict=True):
        assert re.fullmatch(rf"{path}  \|  ({shown}){sets}", line), line


@pytest.mark.usefixtures("project")
def test_the_cards_examples_say_what_predict_says(capsys: pytest.CaptureFixture[str]) -> None:
    target, card = read_target(paths.FINETUNE), Path("export/README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front_matter = YAML(typ="safe").load(front)
    assert front_matter.get("pipeline_tag") == (None if target.kind == "number" else "image-classification")
    assert front_matter["tags"] == [*target.hub_tags, "timm", "onnx"]
    assert f"| {' | '.join(each.title for each in target.measures.values())} |" in text
    assert all(f"`{name}`" in text for name in target.names)
    assert all(f"[{unit}]" in text for unit in target.units if unit)
    levels = read_json(Path("export/config.json"))["headstart"]["conformal"]
    assert all(f"({level['method']})" in text for level in levels)
    examples = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    assert len(examples) == 2
    assert all(len(example.splitlines()) <= 8 for example in examples)
    names: dict[str, object] = {}
    for path in images()[:5]:
        for example in examples:
            exec(example.replace("image.jpg", str(path)), names)  # noqa: S102  (the example is what is tested)
            shown, found = capsys.readouterr().out.strip(), Predictor("export")(path)
            if found.numbers is not None:
                close(ast.literal_eval(shown), {each.name: each.value for each in found.numbers})
            elif found.labels is not None:
                assert set(ast.literal_eval(shown)) == set(found.labels)
            else:
                assert shown == found.label


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("same", [True, False])
def test_a_format_that_rounds_is_held_to_the_targets_own_answers(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(".", tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    target, good = read_target(paths.FINETUNE), tmp_path / "model.onnx"
    shutil.copyfile("export/model.onnx", good)

    def rounded(path: Path) -> Any:
        function = onnx_model(path)

        def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, features = function(pixels)
            return logits if same else -logits, features

        return run if "fp16" in path.name else function

    monkeypatch.setattr(bundle_writer, "traced", lambda _model, _size: None)
    monkeypatch.setattr(bundle_writer, "write_onnx", lambda _program, path, _about: shutil.copyfile(good, path))
    monkeypatch.setattr(bundle_writer, "onnx_model", rounded)
    changes = {"export.formats": ["onnx", "onnx_fp16"], "export.fp16": {"agreement": 0.9, "nll": 1e9}}
    if same:
        run(changes)
        assert read_json(paths.report_of("export"))["formats"]["onnx_fp16"]["top1_agreement"] >= 0.9
        assert f"| largest difference of a logit | {target.agreement_title} |" in Path("export/README.md").read_text()
    else:
        said = rf"beyond export\.fp16: {target.agreement_title} on \d+\.\d+% of 40 images"
        with pytest.raises(UserError, match=said):
            run(changes)


@pytest.mark.parametrize("rounding", [0.8, 1.2])
def test_numbers_that_are_rounded_are_held_to_the_models_own_error(
    rounding: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fraction of ``CLOSE`` of the model's RMSE is added to half of the numbers and taken from the others."""
    monkeypatch.chdir(tmp_path)
    write_project("number")
    prepared, target = PreparedDataset.open(), read_target(paths.FINETUNE)
    model = load_timm(paths.FINETUNE)
    with torch.inference_mode():
        outputs = model(Normalize(INPUT)(evaluation_pixels(prepared, prepared.rows("validation")))).numpy()
    rmse = np.sqrt(target.losses(outputs.astype(np.float64), read_values("validation")).mean())

    def rounded(path: Path) -> Any:
        function = WithFeatures(model).eval()

        @torch.inference_mode()
        def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, features = function(pixels)
            sign = torch.where(pixels.mean(dim=(1, 2, 3)) > 0, 1.0, -1.0)[:, None]
            return logits + sign * rounding * CLOSE * float(rmse), features

        return run if "int8" in path.name else function

    monkeypatch.setattr(bundle_writer, "onnx_model", rounded)
    monkeypatch.setattr(bundle_writer, "traced", lambda _model, _size: None)
    monkeypatch.setattr(bundle_writer, "write_onnx", lambda _program, path, _about: path.touch())
    monkeypatch.setattr(bundle_writer, "write_int8", lambda _onnx, path, _batches: path.touch())
    changes = {"export.formats": ["onnx", "onnx_int8"], "export.int8": {"agreement": 0.95, "nll": 0.5}}
    if rounding < 1:
        run(changes)
        figures = read_json(paths.report_of("export"))["formats"]["onnx_int8"]
        assert (figures["top1_agreement"], figures["nll_difference"] < 0.5) == (1, True)
        assert figures["max_difference"] == pytest.approx(rounding * CLOSE * rmse, rel=1e-3)
        # The answers are near enough, and yet the error may not grow as much as this.
        with pytest.raises(UserError, match=r"beyond export\.int8: .* on 100\.00% of 40 images, the loss differs by"):
            run({**changes, "export.int8": {"agreement": 0.95, "nll": 0.01}})
    else:
        with pytest.raises(UserError, match=r"numbers within 50% of the model's RMSE on 0\.00% of 40 images"):
            run(changes)


def test_a_model_of_another_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project("grade")
    config = read_json(paths.FINETUNE / "config.json")
    config["headstart_target"]["kind"] = "class"
    write_json(paths.FINETUNE / "config.json", config)
    with pytest.raises(UserError, match=r"config\.json: target is class, but data/prepared has grade"):
        run()


@pytest.mark.parametrize("kind", ["labels", "number", "grade"])
def test_a_checkpoint_that_nobody_evaluated_answers_too(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(files=True, kind=kind)
    target = PreparedDataset.open().target
    torch.save(write_finetune(target=target).state_dict(), "last.pth")
    changes = {"backbone.name": "test_resnet", "export.pictures": 4, "export.formats": []}
    YAML().dump(params(changes | {"prepare.source": "imagefolder"}).model_dump(), Path("params.yaml"))
    export_checkpoint(Path("last.pth"), Path("mine"), Path("params.yaml"))
    assert "Nothing was fitted" in Path("mine/README.md").read_text()
    with pytest.raises(UserError, match="mine has no temperature"):
        Predictor("mine", device="torch", calibrated=True)
    found, shown = Predictor("mine", device="torch")(images()[0]), io.StringIO()
    assert found.prediction_set is found.interval is found.ood_distance is None
    text_writer(shown, {})(found)
    if found.labels is not None:
        assert found.labels == {name: probability for name, probability in found.top if probability >= 0.5}
    elif found.label is None:
        assert re.search(r"\|  -?\d+(\.\d+)? lux\n$", shown.getvalue())
    else:
        assert found.label in target.names
