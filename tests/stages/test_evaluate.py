from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.ground import artifacts
from headstart.ground.params import Run
from headstart.stages import evaluate
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
def test_report_has_both_models_and_the_tables_agree_with_it() -> None:
    run()
    report = artifacts.read_json(artifacts.REPORTS / "evaluate.json")
    predictions = artifacts.read_table(artifacts.REPORTS / "evaluate" / "predictions.csv")
    assert (report["pictures"], report["classes"]) == (9, list(CLASSES))
    assert set(report["models"]) == {"probe", "finetune"}
    for name, figures in report["models"].items():
        right = [row["label"] == row[name] for row in predictions]
        assert figures["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
        assert {"balanced_accuracy", "macro_f1", "top_3_accuracy", "nll", "seconds"} <= set(figures)
        assert sum(entry["support"] for entry in figures["per_class"]) == 9
        confusion = artifacts.read_table(artifacts.REPORTS / "evaluate" / f"confusion_{name}.csv")
        assert confusion == [{"actual": row["label"], "predicted": row[name]} for row in predictions]


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
    for name, logits in (("finetune", finetune), ("probe", probe)):
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
        assert other["probe"] == found[0]["probe"]


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
