from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.assembly.inference import Normalize, evaluation_pixels
from headstart.ground import artifacts
from headstart.ground.baselines import read_baselines
from headstart.ground.params import Run
from headstart.libraries.backbone import BUNDLED, build
from headstart.stages import evaluate, features, probe
from pictures import CLASSES, INPUT, params, write_finetune, write_prepared, write_probe


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Everything that the stage reads, in the working directory; gives the fine-tuned model."""
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared()
    model = write_finetune()
    write_probe(prepared, model)
    return model


def run(changes: dict[str, object] | None = None) -> None:
    evaluate.run(params({"evaluate.batch_size": 4, **(changes or {})}).declared(evaluate.PARAMS))


@pytest.mark.usefixtures("project")
def test_report_has_every_model_and_the_tables_agree_with_it() -> None:
    run()
    report = artifacts.read_json(artifacts.REPORTS / "evaluate.json")
    predictions = artifacts.read_table(artifacts.REPORTS / "evaluate" / "predictions.csv")
    assert (report["pictures"], report["classes"]) == (9, list(CLASSES))
    assert list(report["models"]) == ["probe", "knn", "finetune"]
    for name, figures in report["models"].items():
        right = [row["label"] == row[name] for row in predictions]
        assert figures["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
        assert {"balanced_accuracy", "macro_f1", "top_3_accuracy", "nll", "seconds"} <= set(figures)
        assert sum(entry["support"] for entry in figures["per_class"]) == 9
    for name in ("probe", "finetune"):
        confusion = artifacts.read_table(artifacts.REPORTS / "evaluate" / f"confusion_{name}.csv")
        assert confusion == [{"actual": row["label"], "predicted": row[name]} for row in predictions]


@pytest.mark.usefixtures("project")
def test_the_time_spent_is_that_of_the_stage_that_spent_it() -> None:
    run()
    models = artifacts.read_json(artifacts.REPORTS / "evaluate.json")["models"]
    assert {name: figures["fit_seconds"] for name, figures in models.items()} == {
        "probe": 1.5,
        "knn": 2.5,
        "finetune": 12.5,
    }
    assert models["knn"]["seconds"] == 0.25
    assert models["finetune"]["seconds"] > 0


def test_predictions_are_those_of_the_models_on_each_test_picture(project: torch.nn.Module) -> None:
    run()
    prepared = artifacts.Prepared.open()
    manifest = [row for row in artifacts.manifest_rows() if row["split"] == "test"]
    predictions = artifacts.read_table(artifacts.REPORTS / "evaluate" / "predictions.csv")
    for name in ("id", "source", "label"):
        assert [row[name] for row in predictions] == [row[name] for row in manifest]

    rows = prepared.rows("test")
    pixels = torch.stack([torch.tensor(prepared.pixels(int(row))[2:34, 2:34]) for row in rows])
    inputs = ((pixels / 255 - torch.tensor(INPUT["mean"])) / torch.tensor(INPUT["std"])).permute(0, 3, 1, 2)
    with torch.no_grad():
        finetune = project(inputs)
    probe = torch.from_numpy(artifacts.read_head().logits(artifacts.read_features(rows)))
    assert not torch.equal(finetune.argmax(1), probe.argmax(1))
    knn = torch.from_numpy(read_baselines(rows)["knn"])
    for name, logits in (("finetune", finetune), ("probe", probe), ("knn", knn)):
        probability, chosen = logits.softmax(1).max(1)
        assert [row[name] for row in predictions] == [CLASSES[i] for i in chosen]
        found = [float(row[f"{name}_probability"]) for row in predictions]
        assert found == pytest.approx(probability.tolist(), abs=2e-6)


@pytest.mark.usefixtures("project")
def test_figures_do_not_depend_on_the_batch_size() -> None:
    found = []
    for batch_size in (4, 9, 64):
        run({"evaluate.batch_size": batch_size})
        models = artifacts.read_json(artifacts.REPORTS / "evaluate.json")["models"]
        found.append({name: {**figures, "seconds": 0} for name, figures in models.items()})
    for other in found[1:]:
        assert other["finetune"].pop("nll") == pytest.approx(found[0]["finetune"]["nll"], abs=1e-5)
        assert other["finetune"] == {key: value for key, value in found[0]["finetune"].items() if key != "nll"}
        assert (other["probe"], other["knn"]) == (found[0]["probe"], found[0]["knn"])


@pytest.mark.usefixtures("project")
def test_the_tracked_run_gets_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, float] = {}

    def summarise(run: Run, figures: dict[str, float]) -> None:
        assert run.tracking == "disabled"
        got.update(figures)

    monkeypatch.setattr(evaluate, "summarise", summarise)
    run()
    models = artifacts.read_json(artifacts.REPORTS / "evaluate.json")["models"]
    assert got["finetune/accuracy"] == models["finetune"]["accuracy"]
    assert {f"{model}/{key}" for model in models for key in models[model] if key != "per_class"} == set(got)


def test_the_backbones_own_classes_and_the_heads_go_through_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five sets of the bundled backbone's 200 classes against the sums of the whole model's own softmax."""
    monkeypatch.chdir(tmp_path)
    sets = {"a": list(range(10)), "b": ["n01882714", "Egyptian cat"], "c": [50, 51, 52], "d": [100, 199], "e": "rest"}
    changes = {"probe.l2": [0.1], "probe.heads": ["ridge", "tree"], "probe.class_map": sets, "run.cache": "cache"}
    prepared = write_prepared(classes=tuple(sets))
    features.run(params(changes).declared(features.PARAMS))
    probe.run(params(changes).declared(probe.PARAMS))
    write_finetune(tuple(sets))
    run()

    whole = build(BUNDLED, pretrained=True, image_size=None, args={}).eval()
    with torch.inference_mode():
        logits = whole(Normalize(prepared.input)(evaluation_pixels(prepared, prepared.rows("test"))))
    p = logits.softmax(1).double().numpy()
    config: Any = whole.pretrained_cfg
    koala = config["label_names"].index("n01882714")
    cat = list(config["label_descriptions"].values()).index("Egyptian cat")
    sums = np.column_stack([p[:, :10].sum(1), p[:, [koala, cat]].sum(1), p[:, 50:53].sum(1), p[:, [100, 199]].sum(1)])
    sums = np.column_stack([sums, 1 - sums.sum(1)])
    np.testing.assert_allclose(np.exp(read_baselines(prepared.rows("test"))["zero_shot"]), sums, rtol=1e-3, atol=1e-6)

    models = artifacts.read_json(artifacts.REPORTS / "evaluate.json")["models"]
    assert list(models) == ["probe", "ridge", "tree", "zero_shot", "finetune"]
    labels = artifacts.read_labels("test")
    assert models["zero_shot"]["accuracy"] == pytest.approx(np.mean(sums.argmax(1) == labels), abs=1e-6)
    assert models["zero_shot"]["nll"] == pytest.approx(-np.log(sums[np.arange(9), labels]).mean(), abs=1e-3)
    assert models["zero_shot"]["fit_seconds"] == 0
    assert models["ridge"]["fit_seconds"] > 0
