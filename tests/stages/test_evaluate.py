import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.core import paths
from headstart.core.io import read_json, read_table
from headstart.data.dataset import SPLITS, PreparedDataset, read_values
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import MANIFEST_COLUMNS, manifest_rows, write_manifest
from headstart.evaluation import predictions
from headstart.evaluation.ood import ood_thresholds, read_ood_reference
from headstart.evaluation.trust import calibration, conformal
from headstart.features.cache import read_features
from headstart.inference.scores import distances
from headstart.models.backbone import BUNDLED, create_backbone, features_of
from headstart.models.head import read_head
from headstart.probe.outputs import read_baseline
from headstart.stages import evaluate, features, probe
from headstart.targets.classes import Classes
from helpers.images import CLASSES, INPUT, params, write_finetune, write_prepared, write_probe


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Everything that the stage reads, in the working directory; gives the fine-tuned model."""
    monkeypatch.chdir(tmp_path)
    # The page has tests of its own, and is made from more than is written here.
    monkeypatch.setattr(evaluate, "write_html_report", lambda _: paths.REPORTS / "index.html")
    prepared = write_prepared()
    model = write_finetune()
    write_probe(prepared, model)
    return model


def run(changes: dict[str, object] | None = None) -> None:
    evaluate.run(params({"evaluate.batch_size": 4, **(changes or {})}).declared(evaluate.PARAMS))


@pytest.mark.usefixtures("project")
def test_report_has_every_model_and_the_tables_agree_with_it() -> None:
    run()
    report = read_json(paths.REPORTS / "evaluate.json")
    predictions = read_table(paths.REPORTS / "evaluate" / "predictions.csv")
    assert (report["pictures"], report["classes"]) == (9, list(CLASSES))
    assert list(report["models"]) == ["probe", "knn", "finetune"]
    for name, figures in report["models"].items():
        right = [row["label"] == row[name] for row in predictions]
        assert figures["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
        assert {"balanced_accuracy", "macro_f1", "top_3_accuracy", "nll", "brier", "ece", "auroc"} <= set(figures)
        assert set(figures["intervals"]) <= set(figures)
        assert sum(entry["support"] for entry in figures["per_class"]) == 9
    for name in ("probe", "finetune"):
        confusion = read_table(paths.REPORTS / "evaluate" / f"confusion_{name}.csv")
        assert confusion == [{"actual": row["label"], "predicted": row[name]} for row in predictions]


@pytest.mark.usefixtures("project")
def test_the_time_spent_is_that_of_the_stage_that_spent_it() -> None:
    run()
    models = read_json(paths.REPORTS / "evaluate.json")["models"]
    assert {name: figures["fit_seconds"] for name, figures in models.items()} == {
        "probe": 1.5,
        "knn": 2.5,
        "finetune": 12.5,
    }
    assert models["knn"]["seconds"] == 0.25
    assert models["finetune"]["seconds"] > 0


def test_predictions_are_those_of_the_models_on_each_test_image(project: torch.nn.Module) -> None:
    run()
    prepared = PreparedDataset.open()
    manifest = [row for row in manifest_rows() if row["split"] == "test"]
    predictions = read_table(paths.REPORTS / "evaluate" / "predictions.csv")
    for name in ("id", "source", "label"):
        assert [row[name] for row in predictions] == [row[name] for row in manifest]

    rows = prepared.rows("test")
    pixels = torch.stack([torch.tensor(prepared.pixels(int(row))[2:34, 2:34]) for row in rows])
    inputs = ((pixels / 255 - torch.tensor(INPUT["mean"])) / torch.tensor(INPUT["std"])).permute(0, 3, 1, 2)
    with torch.no_grad():
        finetune = project(inputs)
    probe = torch.from_numpy(read_head().logits(read_features(rows)))
    assert not torch.equal(finetune.argmax(1), probe.argmax(1))
    knn = torch.from_numpy(read_baseline("knn", "test")[:])
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
        models = read_json(paths.REPORTS / "evaluate.json")["models"]
        found.append({name: {**figures, "seconds": 0} for name, figures in models.items()})
    for other in found[1:]:
        intervals, expected = (models["finetune"].pop("intervals") for models in (other, copy.deepcopy(found[0])))
        assert other["finetune"] == {
            key: value if key == "per_class" else pytest.approx(value, abs=1e-5)
            for key, value in found[0]["finetune"].items()
            if key != "intervals"
        }
        assert intervals == {key: ends and pytest.approx(ends, abs=1e-5) for key, ends in expected.items()}
        assert (other["probe"], other["knn"]) == (found[0]["probe"], found[0]["knn"])


def test_the_figures_that_can_be_trusted_are_those_of_the_logits(project: torch.nn.Module) -> None:
    """From the model's own answers to validation and test, computed here again."""
    run()
    prepared = PreparedDataset.open()
    trust = read_json(paths.TRUST)
    logits, features = dict[str, Any](), dict[str, Any]()
    for split in SPLITS:
        pixels = evaluation_pixels(prepared, prepared.rows(split))
        with torch.no_grad():
            features[split] = features_of(project, Normalize(INPUT)(pixels)).numpy()
            logits[split] = project(Normalize(INPUT)(pixels)).numpy()
    labels = {split: read_values(split) for split in ("validation", "test")}
    target = Classes(CLASSES)
    found = calibration(logits, labels, target, target.fit(logits["validation"], labels["validation"]))
    assert trust["calibration"]["finetune"]["temperature"] == pytest.approx(found["temperature"], rel=1e-3)
    assert trust["calibration"]["finetune"]["after"]["nll"] == pytest.approx(found["after"]["nll"], abs=1e-4)
    knn = {str(split): read_baseline("knn", split) for split in SPLITS[1:]}
    assert trust["calibration"]["knn"] == calibration(
        knn, labels, target, target.fit(knn["validation"], labels["validation"])
    )

    for entry, expected in zip(trust["conformal"], conformal(logits, labels, target), strict=True):
        assert entry["threshold"] == pytest.approx(expected["threshold"], abs=1e-5)
        assert entry["coverage"] == expected["coverage"]
    exported, reference = read_ood_reference("finetune")
    np.testing.assert_allclose(reference, features["train"], atol=1e-4)
    assert exported["temperature"] == trust["calibration"]["finetune"]["temperature"]
    assert [each["threshold"] for each in exported["conformal"]] == [each["threshold"] for each in trust["conformal"]]
    assert exported["out_of_distribution"]["thresholds"] == trust["out_of_distribution"]["thresholds"]
    distance = {split: distances(features[split], features["train"]) for split in labels}
    assert trust["out_of_distribution"]["flagged"] == ood_thresholds(distance, 12)["flagged"]


@pytest.mark.usefixtures("project")
def test_an_export_of_the_probe_will_say_how_sure_the_probe_is() -> None:
    run()
    prepared = PreparedDataset.open()
    head, split_labels = read_head(), {split: read_values(split) for split in ("validation", "test")}
    features: dict[str, Any] = {split: read_features(prepared.rows(split)) for split in SPLITS}
    logits = {split: head.logits(features[split]) for split in split_labels}
    target = Classes(CLASSES)
    exported, reference = read_ood_reference("probe")
    np.testing.assert_array_equal(reference, features["train"])
    assert exported == exported | target.fit(logits["validation"], split_labels["validation"])
    expected = conformal(logits, split_labels, target)
    assert [each["threshold"] for each in exported["conformal"]] == [each["threshold"] for each in expected]
    distance = {split: distances(features[split], reference) for split in split_labels}
    assert exported["out_of_distribution"]["thresholds"] == ood_thresholds(distance, 12)["thresholds"]


@pytest.mark.usefixtures("project")
def test_comparisons_and_the_verdict_agree_with_the_predictions() -> None:
    run()
    report = read_json(paths.REPORTS / "evaluate.json")
    predictions = read_table(paths.PREDICTIONS)
    assert [(each["model"], each["against"]) for each in report["comparisons"]] == [
        ("finetune", "probe"),
        ("finetune", "knn"),
    ]
    for each in report["comparisons"]:
        right = [(row["finetune"] == row["label"], row[each["against"]] == row["label"]) for row in predictions]
        assert each["only_model_right"] == right.count((True, False))
        assert each["only_other_right"] == right.count((False, True))
        assert each["bootstrap_corrected_p"] >= each["bootstrap_p"]
    # The probe was better on validation than knn, and so is what fine-tuning has to beat.
    assert "probe has" in report["verdict"] or "and probe" in report["verdict"]
    low, high = report["models"]["probe"]["intervals"]["accuracy"]
    assert low <= report["models"]["probe"]["accuracy"] <= high
    assert report["bootstrap"]["units"] == "pictures"


@pytest.mark.usefixtures("project")
def test_groups_and_further_columns_of_the_source_are_used() -> None:
    rows = list(manifest_rows())
    tests = [row for row in rows if row["split"] == "test"]
    for i, row in enumerate(tests):
        row |= {"group": str(i // 3), "site": "north" if i < 4 else "south"}
    table = [[row.get(column, "north") for column in (*MANIFEST_COLUMNS, "site")] for row in rows]
    write_manifest(paths.PREPARED, ["site"], table, len(table))
    run()
    report = read_json(paths.REPORTS / "evaluate.json")
    assert report["bootstrap"]["units"] == "groups"
    assert {each["mcnemar_p"] for each in report["comparisons"]} == {None}
    predictions = read_table(paths.PREDICTIONS)
    for entry in read_table(paths.SLICES):
        mine = [row for i, row in enumerate(predictions) if (i < 4) == (entry["value"] == "north")]
        assert (entry["column"], int(entry["pictures"])) == ("site", len(mine))
        assert float(entry["accuracy"]) == pytest.approx(np.mean([r["finetune"] == r["label"] for r in mine]), abs=1e-6)


@pytest.mark.parametrize("helps", [False, True])
def test_the_mirror_is_offered_where_it_helps_on_validation(
    project: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, *, helps: bool
) -> None:
    asked: list[tuple[Any, ...]] = []

    def judge(averaged: Any, plain: Any, *others: Any) -> tuple[float, list[float]]:
        asked.append((averaged[:], plain[:], *others))  # what is on disk is there for no longer
        return 0.25, [0.125 if helps else 0.0, 0.5]

    monkeypatch.setattr(predictions, "nll_difference", judge)
    run()
    report, prepared = read_json(paths.REPORTS / "evaluate.json"), PreparedDataset.open()
    mean = dict[str, Any]()
    for split in ("validation", "test"):
        inputs = Normalize(INPUT)(evaluation_pixels(prepared, prepared.rows(split)))
        with torch.no_grad():
            mean[split] = (project(inputs).softmax(1) + project(inputs.flip(3)).softmax(1)) / 2
    ((averaged, plain, labels, groups, _),) = asked
    torch.testing.assert_close(torch.from_numpy(np.exp(averaged)), mean["validation"], rtol=1e-3, atol=1e-5)
    assert (averaged.shape, labels.tolist(), groups) == (plain.shape, read_values("validation").tolist(), None)
    assert ("finetune_tta" in report["models"]) == helps
    assert ("finetune_tta sees each image in the mirror" in report["verdict"]) == helps
    assert "finetune has" in report["verdict"].partition("finetune_tta")[0]
    if helps:
        rows = read_table(paths.PREDICTIONS)
        assert [row["finetune_tta"] for row in rows] == [CLASSES[i] for i in mean["test"].argmax(1)]
        assert "NLL is 0.2500 lower (95 % interval 0.1250 to 0.5000" in report["verdict"]
        assert report["models"]["finetune_tta"]["seconds"] > report["models"]["finetune"]["seconds"]


@pytest.mark.usefixtures("project")
def test_what_was_run_is_written_down() -> None:
    run({"finetune.epochs": 7})
    ran = read_json(paths.RUN_INFO)
    assert ran["params"]["finetune"]["epochs"] == 7
    assert ran["params"]["evaluate"]["batch_size"] == 4
    manifest = (paths.PREPARED / "manifest.csv").read_bytes()
    assert ran["data_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert {"headstart", "versions", "python", "machine", "gpu", "git", "weights_sha256"} <= set(ran)


def test_the_backbones_own_classes_and_the_heads_go_through_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five sets of the bundled backbone's 200 classes against the sums of the whole model's own softmax."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "write_html_report", lambda _: paths.REPORTS / "index.html")
    sets = {"a": list(range(10)), "b": ["n01882714", "Egyptian cat"], "c": [50, 51, 52], "d": [100, 199], "e": "rest"}
    changes = {"probe.l2": [0.1], "probe.heads": ["ridge", "tree"], "probe.class_map": sets, "run.cache": "cache"}
    prepared = write_prepared(classes=tuple(sets))
    features.run(params(changes).declared(features.PARAMS))
    probe.run(params(changes).declared(probe.PARAMS))
    write_finetune(tuple(sets))
    run()

    whole = create_backbone(BUNDLED, pretrained=True, image_size=None, args={}).eval()
    with torch.inference_mode():
        logits = whole(Normalize(prepared.input)(evaluation_pixels(prepared, prepared.rows("test"))))
    p = logits.softmax(1).double().numpy()
    config: Any = whole.pretrained_cfg
    koala = config["label_names"].index("n01882714")
    cat = list(config["label_descriptions"].values()).index("Egyptian cat")
    sums = np.column_stack([p[:, :10].sum(1), p[:, [koala, cat]].sum(1), p[:, 50:53].sum(1), p[:, [100, 199]].sum(1)])
    sums = np.column_stack([sums, 1 - sums.sum(1)])
    np.testing.assert_allclose(np.exp(read_baseline("zero_shot", "test")[:]), sums, rtol=1e-3, atol=1e-6)

    models = read_json(paths.REPORTS / "evaluate.json")["models"]
    assert list(models) == ["probe", "ridge", "tree", "zero_shot", "finetune"]
    labels = read_values("test")
    assert models["zero_shot"]["accuracy"] == pytest.approx(np.mean(sums.argmax(1) == labels), abs=1e-6)
    assert models["zero_shot"]["nll"] == pytest.approx(-np.log(sums[np.arange(9), labels]).mean(), abs=1e-3)
    assert models["zero_shot"]["fit_seconds"] == 0
    assert models["ridge"]["fit_seconds"] > 0
