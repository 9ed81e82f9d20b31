"""The probe: chosen on validation, blind to test labels, kept along the whole path."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.core.errors import UserError
from headstart.core.io import read_table
from headstart.core.paths import PROBE
from headstart.data.dataset import SPLITS, PreparedDataset, read_values
from headstart.features.cache import write_changed_features
from headstart.features.extract import write_features
from headstart.models.head import PretrainedHead, read_head, write_pretrained_head
from headstart.probe import sklearn_heads
from headstart.probe.outputs import read_baseline
from headstart.stages import probe
from headstart.targets.target import mean_loss
from helpers.constants import best_constant, negative_log_likelihood
from helpers.images import CLASSES, params, write_prepared

PATH = [1.0, 0.1, 0.01]
HEADS = ["ridge", "knn", "tree", "forest", "boosting"]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Features that tell the class, but for noise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sklearn_heads, "FOREST_TREES", 20)
    monkeypatch.setattr(sklearn_heads, "BOOSTING_ITERATIONS", 5)
    prepared = write_prepared({"train": 40, "validation": 24, "test": 8})
    generator = np.random.default_rng(1)
    features = generator.normal(size=(len(prepared.ids), 6)).astype(np.float32)
    for split in ("train", "validation"):
        rows, labels = prepared.rows(split), read_values(split)
        features[rows, labels] += 1.5
    write_features(features.__getitem__, features.shape, "float32", {})
    return prepared


def test_the_lowest_validation_loss_is_chosen_and_reported(prepared: PreparedDataset) -> None:
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    table = read_table(Path("reports/probe/l2_path.csv"))
    assert [float(row["l2"]) for row in table] == PATH
    losses = [float(row["val_loss"]) for row in table]
    chosen = read_head()
    report = json.loads(Path("reports/probe.json").read_text())
    assert chosen.l2 == report["l2"] == PATH[int(np.argmin(losses))]
    features = np.load("data/features/features.npy")[prepared.rows("validation")]
    assert negative_log_likelihood(chosen.logits(features), read_values("validation")) == pytest.approx(min(losses))
    assert report["val_accuracy"] > 0.6


@pytest.mark.usefixtures("prepared")
def test_little_work_is_left_to_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    assert not PROBE.exists()
    monkeypatch.setenv("RANK", "0")
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    assert PROBE.exists()


@pytest.mark.usefixtures("prepared")
def test_much_work_is_done_by_torch_to_the_same_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for worth in (probe.WORTH_TORCH, 1):
        monkeypatch.setattr(probe, "WORTH_TORCH", worth)
        report = run(heads=["ridge"])
        ridge = np.array(read_baseline("ridge", "validation")[:])
        heads.append((read_head().weight, report["train_loss"], ridge))
    for found, expected in zip(heads[1], heads[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("prepared")
def test_a_head_of_at_least_a_given_l2_can_be_had() -> None:
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    chosen = read_head()
    assert chosen.l2 < 1
    assert read_head(chosen.l2 / 2).l2 == chosen.l2
    assert read_head(7.0).l2 == 1
    assert np.linalg.norm(read_head(7.0).weight) < np.linalg.norm(chosen.weight)


def run(**changes: Any) -> dict[str, Any]:
    """Run the stage; gives its report."""
    changed = {f"probe.{key}": value for key, value in {"l2": PATH, **changes}.items()}
    probe.run(params(changed).declared(probe.PARAMS))
    report: dict[str, Any] = json.loads(Path("reports/probe.json").read_text())
    return report


def test_every_head_is_asked_about_the_images_outside_train(prepared: PreparedDataset) -> None:
    report = run(heads=HEADS)
    assert list(report["heads"]) == HEADS
    assert report["skipped"] == {}
    labels = read_values("validation")
    for name, figures in report["heads"].items():
        outputs = read_baseline(name, "validation")[:]
        assert negative_log_likelihood(outputs, labels) == pytest.approx(figures["val_loss"], rel=1e-5)
        assert np.mean(outputs.argmax(1) == labels) == figures["val_accuracy"] > 0.3
        assert figures["settings"]
        assert figures["fit_seconds"] > 0
        shapes = [read_baseline(name, split).shape for split in SPLITS[1:]]
        assert shapes == [(len(prepared.rows(split)), 4) for split in SPLITS[1:]]
    assert sum(len(prepared.rows(split)) for split in SPLITS[1:]) == 32


@pytest.mark.usefixtures("prepared")
def test_other_heads_leave_the_one_that_fine_tuning_starts_from_as_it_is() -> None:
    """Byte for byte, so that DVC has nothing to train again."""
    kept = []
    for heads in ([], ["ridge", "tree"]):
        assert list(run(heads=heads)["heads"]) == heads
        kept.append({path.name: path.read_bytes() for path in PROBE.iterdir()})
    assert kept[0] == kept[1]


@pytest.mark.usefixtures("prepared")
def test_a_head_that_does_not_pay_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn_heads, "CLASS_LIMITS", {"boosting": 3})
    report = run(heads=["boosting", "ridge"])
    assert list(report["heads"]) == ["ridge"]
    assert report["skipped"] == {"boosting": "4 classes: its time grows with them, and beyond 3 it is skipped"}


@pytest.mark.usefixtures("prepared")
def test_auto_leaves_out_what_takes_long_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn_heads, "SIZE_LIMITS", {"boosting": 1})
    report = run(heads="auto")
    assert list(report["heads"]) == ["ridge", "knn", "tree", "forest"]
    assert report["skipped"]["boosting"].startswith("it would take long; `probe.heads: [ridge, knn, tree, forest, boo")
    assert list(run(heads=["boosting"])["heads"]) == ["boosting"]


def test_the_backbones_own_classes_are_summed(prepared: PreparedDataset) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    write_pretrained_head(PretrainedHead(weight, np.zeros(6, np.float32), list("uvwxyz"), []))
    sets = dict(zip(CLASSES, (["U", 3], ["v"], ["w"], "rest"), strict=True))
    report = run(class_map=sets)
    assert report["heads"]["zero_shot"]["settings"] == dict(zip(CLASSES, ([0, 3], [1], [2], "rest"), strict=True))
    rows = prepared.rows("validation")
    odds = np.exp(np.load("data/features/features.npy")[rows] @ weight.T)
    expected = np.column_stack([odds[:, [0, 3]].sum(1), odds[:, 1], odds[:, 2], odds[:, 4:].sum(1)])
    found = np.exp(read_baseline("zero_shot", "validation")[:])
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-4)


@pytest.mark.usefixtures("prepared")
def test_a_wrong_map_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_solver", None)
    sets = {name: [i] for i, name in enumerate(CLASSES)}
    with pytest.raises(UserError, match=r"probe\.class_map: this backbone came without a linear classifier"):
        run(class_map=sets)
    write_pretrained_head(PretrainedHead(np.zeros((3, 6), np.float32), np.zeros(3, np.float32), [], []))
    with pytest.raises(UserError, match="yak: the backbone has no class 3; they are 0 to 2"):
        run(class_map=sets)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({0: [1]}, "write the class 0 in quotes"),
        ({"cat": "tabby"}, "cat needs a list of the backbone's classes, names or indices, or the word rest"),
        ({"cat": []}, "cat needs a list"),
        ({"cat": [1, 2.5]}, "cat needs a list"),
        ({"cat": [True]}, "cat needs a list"),
        ([0], "valid dictionary"),
    ],
)
def test_what_is_no_map_is_refused_in_plain_words(sets: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"probe\.class_map: .*{message}"):
        params({"probe.class_map": sets})


def test_changes_are_judged_with_the_chosen_head_and_their_verdicts_kept_for_fine_tuning(
    prepared: PreparedDataset,
) -> None:
    rows = prepared.rows("validation")
    features = np.load("data/features/features.npy")[rows]
    write_changed_features(rows, ["hflip", "vflip"], np.hstack([features, -features]))
    too_few = run()["augmentation"]
    assert too_few == {"images": 24, "reason": "24 validation images are too few to tell: it takes 30", "changes": {}}
    kept_rows = np.repeat(rows, 2)
    write_changed_features(kept_rows, ["hflip", "vflip"], np.repeat(np.hstack([features, -features]), 2, axis=0))
    evidence = run()["augmentation"]
    assert json.loads((PROBE / "augmentation.json").read_text()) == evidence
    verdicts = evidence["changes"]
    assert {name: verdict["kept"] for name, verdict in verdicts.items()} == {"hflip": True, "vflip": False}
    logits = read_head().logits(-features)
    assert verdicts["vflip"]["changed_accuracy"] == (logits.argmax(1) == read_values("validation")).mean()


@pytest.mark.usefixtures("prepared")
def test_without_changed_images_nothing_is_taken() -> None:
    evidence = run()["augmentation"]
    assert evidence["changes"] == {}
    assert evidence["reason"].startswith("data/features has no changed images")


# Other targets.


@pytest.fixture(params=["labels", "number", "grade"])
def other(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Features that tell the brightness, but for noise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sklearn_heads, "FOREST_TREES", 20)
    monkeypatch.setattr(sklearn_heads, "BOOSTING_ITERATIONS", 5)
    prepared = write_prepared({"train": 60, "validation": 40, "test": 8}, kind=request.param)
    features = np.random.default_rng(1).normal(size=(len(prepared.ids), 6)).astype(np.float32)
    features[:, 0] += 3 * (np.arange(len(prepared.ids)) % 4)
    write_features(features.__getitem__, features.shape, "float32", {})
    return prepared


def test_every_target_goes_through_the_stage(other: PreparedDataset) -> None:
    report, target = run(heads=HEADS), other.target
    measure = f"val_{next(iter(target.measures))}"
    table, head, values = read_table(Path("reports/probe/l2_path.csv")), read_head(), read_values("validation")
    losses = [float(row["val_loss"]) for row in table]
    assert [*table[0]][:7] == ["log10_l2", "l2", "train_loss", "squared_norm", "val_loss", measure, *[*table[0]][6:7]]
    assert report["l2"] == head.l2 == PATH[int(np.argmin(losses))]
    assert head.weight.shape == (target.outputs, 6)
    assert (head.weight == head.weight[0]).all() == (target.tied or target.outputs == 1)
    outputs = head.logits(np.load("data/features/features.npy")[other.rows("validation")])
    assert report["val_loss"] == pytest.approx(mean_loss(target, outputs, values))
    assert report[measure] == pytest.approx(target.score(outputs, values))
    constant = np.tile(best_constant(target, read_values("train")), (len(values), 1))
    assert report["val_loss"] < 0.7 * mean_loss(target, constant, values)
    assert set(report["heads"]) | set(report["skipped"]) == set(HEADS)
    for name, figures in report["heads"].items():
        found = read_baseline(name, "validation")[:]
        assert mean_loss(target, found, values) == pytest.approx(figures["val_loss"], rel=1e-5)
        assert target.score(found, values) == pytest.approx(figures[measure], rel=1e-5)


def test_numbers_have_generalised_cross_validation_and_residuals_quantiles(other: PreparedDataset) -> None:
    report, info = run(), json.loads((PROBE / "heads.json").read_text())
    table = read_table(Path("reports/probe/l2_path.csv"))
    if other.target.link != "identity":
        assert "gcv" not in report
        assert "gcv" not in table[0]
        assert "residual_quantiles" not in info
        return
    guesses = [float(row["gcv"]) for row in table]
    assert report["gcv"] == pytest.approx(guesses[PATH.index(report["l2"])])
    assert report["gcv_l2"] == PATH[int(np.argmin(guesses))]
    assert all(guess > float(row["train_loss"]) for guess, row in zip(guesses, table, strict=True))
    outputs = read_head().logits(np.load("data/features/features.npy")[other.rows("validation")])
    assert info["residual_quantiles"] == other.target.residual_quantiles(outputs, read_values("validation"))


def test_torch_gives_the_same_heads_of_every_target(other: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for worth in (probe.WORTH_TORCH, 1):
        monkeypatch.setattr(probe, "WORTH_TORCH", worth)
        heads.append((run()["train_loss"], read_head().weight))
    assert heads[1][0] == pytest.approx(heads[0][0], rel=1e-6)
    assert heads[1][1] == pytest.approx(heads[0][1], rel=1e-3, abs=1e-4)
    assert (heads[1][1] == heads[1][1][0]).all() == (other.target.tied or other.target.outputs == 1)


def test_a_map_of_classes_is_refused_where_there_are_none(other: PreparedDataset) -> None:
    message = rf"^probe.class_map: it sums probabilities of classes, and prepare.target is {other.target.kind}: set it"
    with pytest.raises(UserError, match=message):
        run(class_map={"dark": [0]})
