"""`headstart study`: its two studies, on invented features and on scikit-learn's digits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from headstart.core.io import read_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.features.extract import write_features
from headstart.theory import early_stopping, gradients
from headstart.theory.implicit_l2 import equivalent_l2, safe_rate
from helpers.command import headstart
from helpers.images import write_prepared

STUDY = Path("reports/study")
STEPS = 300


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Features that tell the class, but for noise that a head can learn by heart."""
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared({"train": 60, "validation": 40, "test": 8})
    generator = np.random.default_rng(1)
    features = generator.normal(size=(len(prepared.ids), 20)).astype(np.float32)
    for split in ("train", "validation"):
        rows, labels = prepared.rows(split), read_values(split)
        features[rows, labels] += 2
    write_features(features.__getitem__, features.shape, "float32", {})
    return prepared


def words(image: Path) -> str:
    """What an SVG says: matplotlib leaves it in comments beside the curves of its letters."""
    return " ".join(re.findall(r"<!-- (.*?) -->", image.read_text(encoding="utf-8")))


def test_the_stops_are_set_beside_the_theory(prepared: PreparedDataset) -> None:
    early_stopping.run(STEPS)
    rows = read_table(STUDY / "early_stopping.csv")
    figures = json.loads((STUDY / "early_stopping.json").read_text(encoding="utf-8"))
    train = np.load("data/features/features.npy")[prepared.rows("train")]
    assert figures["rate"] == pytest.approx(safe_rate(train, prepared.target))
    assert [int(rows[i]["steps"]) for i in (0, -1)] == [1, STEPS]
    for row in rows:
        assert float(row["theory_l2"]) == pytest.approx(equivalent_l2(figures["rate"], int(row["steps"])))
        assert row["at_end"] == "False"
    ratios = [float(row["nearest_l2"]) / float(row["theory_l2"]) for row in rows]
    assert all(0.2 < ratio < 1.1 for ratio in ratios)  # the filters: at the theory's λ or below
    assert figures["median_ratio"] == pytest.approx(np.median(ratios), rel=1e-3)
    close = [int(row["steps"]) for row, ratio in zip(rows, ratios, strict=True) if 0.5 <= ratio <= 2]
    assert close[0] == figures["close"]["first_step"] == 1
    assert figures["close"]["last_step"] in close
    assert figures["close"]["decades"] == pytest.approx(np.log10(figures["close"]["last_step"]), rel=1e-3)


@pytest.mark.usefixtures("prepared")
def test_stopping_early_is_as_good_as_the_penalty_where_the_noise_can_be_learnt() -> None:
    early_stopping.run(STEPS)
    rows = read_table(STUDY / "early_stopping.csv")
    figures = json.loads((STUDY / "early_stopping.json").read_text(encoding="utf-8"))
    losses = {int(row["steps"]): float(row["val_loss"]) for row in rows}
    best = figures["best_stop"]
    assert best["val_loss"] == pytest.approx(min(losses.values()), rel=1e-3)
    assert losses[best["steps"]] == min(losses.values())
    assert 1 < best["steps"] < STEPS
    assert best["val_loss"] == pytest.approx(figures["best_l2"]["val_loss"], rel=0.1)
    assert best["val_loss"] < 0.95 * losses[STEPS]


@pytest.mark.usefixtures("prepared")
def test_the_same_study_draws_the_same_image() -> None:
    early_stopping.run(50)
    first = (STUDY / "early_stopping.svg").read_bytes()
    early_stopping.run(50)
    assert (STUDY / "early_stopping.svg").read_bytes() == first
    assert len(first) < 150_000
    said = words(STUDY / "early_stopping.svg")
    assert all(label in said for label in ("theory, λ", "softmax, measured", "penalty", "Cross-entropy on validation"))


@pytest.mark.parametrize("kind", ["number", "labels", "grade"])
def test_of_numbers_the_stops_are_the_filters_exactly_and_other_targets_are_near(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared({"train": 60, "validation": 40, "test": 8}, kind=kind)
    features = np.random.default_rng(1).normal(size=(len(prepared.ids), 20)).astype(np.float32)
    features[:, 0] += np.arange(len(prepared.ids)) % 4
    write_features(features.__getitem__, features.shape, "float32", {})
    early_stopping.run(STEPS)
    rows = read_table(STUDY / "early_stopping.csv")
    figures = json.loads((STUDY / "early_stopping.json").read_text(encoding="utf-8"))
    whole = ~np.isnan(prepared.target.responses(read_values("train"), np.empty(0))).any(axis=1)
    assert figures["pictures"] == whole.sum()
    ratios = [float(row["nearest_l2"]) / float(row["theory_l2"]) for row in rows]
    assert ratios[0] > 0.2
    assert max(ratios) < 1.1
    if kind != "number":
        assert "largest_distance_to_the_filter" not in figures
        return
    assert figures["largest_distance_to_the_filter"] < 1e-9
    inside = [row for row in rows if row["at_end"] == "False"]
    assert len(inside) > 10
    for row in inside:
        assert float(row["nearest_l2"]) == pytest.approx(float(row["squared_loss_l2"]), rel=1e-6)
    low, high = figures["val_loss_over_the_penaltys"]
    assert 0 < low < 1.1
    assert low < high < 1.69  # Ali, Kolter and Tibshirani's bound on the risk
    assert "squared loss, measured" in words(STUDY / "early_stopping.svg")


@pytest.mark.usefixtures("prepared")
def test_missing_features_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "data/features/features.npy").unlink()
    answer = headstart("study", "early-stopping")
    assert answer.exit_code == 1
    assert answer.stderr.splitlines()[-1].startswith(
        "error: data/features/features.npy does not exist: run `dvc repro`"
    )
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Usage: headstart study [OPTIONS] COMMAND"),
        (("early-stoping",), "No such command 'early-stoping'"),
        (("early-stopping", "--steps", "3"), "Invalid value for '--steps': 3 is not in the range x>=10"),
    ],
)
def test_wrong_arguments_are_an_error(arguments: tuple[str, ...], said: str) -> None:
    answer = headstart("study", *arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr


def test_help_says_what_a_study_reads_and_writes() -> None:
    answer = headstart("study", "--help")
    assert answer.exit_code == 0
    assert all(study in answer.stdout for study in ("early-stopping", "gradients"))
    answer = headstart("study", "early-stopping", "--help")
    assert "\nreads:   data/prepared (labels of train and validation), data/features" in answer.stdout
    assert "reports/study/early_stopping.svg" in answer.stdout


def test_the_errors_of_differences_are_vs_and_an_ill_scaled_input_moves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gradients, "EPOCHS", 1)
    gradients.run()
    figures = json.loads((STUDY / "gradients.json").read_text(encoding="utf-8"))
    for check in figures["largest_relative_error"].values():
        assert check["by_hand"] < 1e-8
        assert check["by_torch"] < 1e-8
    best, at_the_rule = figures["best"], figures["at_the_rule"]
    assert 1e-6 < best["central"]["step"] < 1e-3
    assert 1e-9 < best["one_sided"]["step"] < 1e-6
    assert best["central"]["error"] < 1e-9 < best["one_sided"]["error"] < 1e-6
    assert best["central_ill_scaled"]["step"] == pytest.approx(1e-6 * best["central"]["step"], rel=0.9)
    assert at_the_rule["central"] < 1e-8
    assert at_the_rule["central_ill_scaled"] > 0.1
    sgd = figures["sgd"]
    assert sgd["ill_scaled"]["largest_stable_rate"] < 1e-9 * sgd["pixels"]["largest_stable_rate"]
    assert sgd["pixels"]["loss"] < 1
    assert 2 < sgd["ill_scaled"]["loss"] < np.log(10)
    assert (STUDY / "gradients.svg").stat().st_size < 150_000
