"""Fine-tuning for every target: its loss and figures, imbalance, tied rows, interruptions; in one process."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, read_table, write_json
from headstart.core.paths import FINETUNE, HEADS_INFO
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.models.head import Head, write_heads
from headstart.models.timm_checkpoint import load_timm, read_target
from headstart.stages import finetune
from headstart.targets.number import QUANTILES
from headstart.targets.target import Values
from headstart.training.module import FineTuner
from headstart.tuning.halving import Try
from helpers.images import params, write_prepared, write_zero_head

SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "run.cache": "cache",
    "finetune.epochs": 3,
    "finetune.batch_size": 8,
    "finetune.batch_norm": "frozen",
    "finetune.lr": {"backbone": 0.02, "head": 0.02},
    "finetune.augment.hflip": 0.5,
    "finetune.early_stopping": {"monitor": "auto", "patience": 9, "min_delta": 0.0},
}
STEPS = 4
"""Of an epoch."""
RESIDUALS = {"residual_quantiles": [[-1.5, 0.1, 1.5]]}
QUANTILE = {"finetune.loss": "quantile"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "class, focal": ("class", {"finetune.loss": "focal", "finetune.early_stopping.monitor": "val_macro_f1"}),
    "labels": ("labels", {}),
    "labels, asymmetric": ("labels", {"finetune.loss": "asymmetric", "finetune.early_stopping.monitor": "val_mean_ap"}),
    "number": ("number", {}),
    "number, quantile": ("number", QUANTILE),
    "grade": ("grade", {"finetune.early_stopping.monitor": "val_kappa"}),
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lay_out(kind: str) -> PreparedDataset:
    """Write images of a target, and the probe's head of zeros."""
    prepared = write_prepared({"train": 35, "validation": 22, "test": 4}, kind=kind)
    write_zero_head(prepared)
    return prepared


def run(changes: dict[str, Any] | None = None) -> dict[str, Tensor]:
    finetune.run(params({**SMALL, **(changes or {})}).declared(finetune.PARAMS))
    return load_file(FINETUNE / "model.safetensors")


def history() -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in read_table(paths.HISTORY)]


def validated(prepared: PreparedDataset) -> tuple[NDArray[np.float32], Values]:
    """The outputs of the model that was kept, on all validation images."""
    pixels = evaluation_pixels(prepared, prepared.rows("validation"))
    with torch.inference_mode():
        outputs: Tensor = load_timm(FINETUNE)(Normalize(prepared.input)(pixels))
    return outputs.numpy(), read_values("validation")


@pytest.mark.parametrize("case", CASES)
def test_it_learns_and_its_figures_are_those_of_the_model_that_is_kept(case: str) -> None:
    kind, changes = CASES[case]
    prepared = lay_out(kind)
    run(changes)
    report, target = read_json(paths.report_of("finetune")), read_target(FINETUNE)
    assert target.spec() == prepared.target.with_loss(changes.get("finetune.loss", "auto")).spec()
    outputs, values = validated(prepared)
    assert report["val_loss"] == pytest.approx(target.losses(outputs, values).mean(), rel=1e-5)
    tally = target.tally(outputs, values, np.arange(len(values)), target.fit(outputs, values))
    figures = {f"val_{name}": float(each[0]) for name, each in tally.figures(np.ones((1, 22), np.float32)).items()}
    measured = [name for name in report if name.removeprefix("val_") in target.measures]
    assert measured == [*(f"val_{name}" for name in target.measures)] or kind == "class"
    for name in measured:
        assert report[name] == pytest.approx(figures[name], rel=1e-3, abs=1e-5), name
    monitor = changes.get("finetune.early_stopping.monitor", f"val_{target.calibrated_loss}")
    known = [float(row[monitor] or "nan") for row in history()]
    first = "val_" + next(iter(target.measures))
    higher = target.measures[monitor.removeprefix("val_")].higher_is_better if monitor in figures else False
    assert report["best_epoch"] == (np.nanargmax if higher else np.nanargmin)(known)
    assert {monitor, first, "val_loss"} <= report.keys()
    losses = [float(row["val_loss"]) for row in history()]
    assert min(losses[1:]) < losses[0]


def test_the_quantiles_start_from_the_probe_s_number_and_its_residuals() -> None:
    prepared = lay_out("number")
    weight = np.random.default_rng(0).normal(0, 0.1, (1, 96)).astype(np.float32)
    write_heads([Head(weight, np.full(1, 0.25, np.float32), 1e-3)], 0)
    with pytest.raises(UserError, match=r"heads\.json has no head for 3 outputs, but one for 1: run `dvc repro -f pro"):
        run(QUANTILE)
    write_json(HEADS_INFO, read_json(HEADS_INFO) | RESIDUALS)
    started = run({**QUANTILE, "finetune.lr": {"backbone": 0.0, "head": 0.0}, "finetune.epochs": 1})
    np.testing.assert_array_equal(started["fc.weight"], np.repeat(weight, 3, axis=0))
    np.testing.assert_allclose(started["fc.bias"], 0.25 + np.array([-1.5, 0.1, 1.5]), rtol=1e-6)
    assert read_target(FINETUNE).spec() == prepared.target.spec() | {"quantiles": [*QUANTILES]}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "number",
            {"finetune.loss": "focal"},
            r"finetune\.loss: prepare\.target is number, which knows no loss focal",
        ),
        ("class", {"finetune.loss": "quantile"}, r"which knows no loss quantile: auto, focal$"),
        (
            "number",
            {"finetune.class_weights": "balanced"},
            r"class_weights: .* no classes, so balanced means nothing",
        ),
        (
            "number",
            {"finetune.logit_adjustment": 1.0},
            r"logit_adjustment: .* so 1\.0 means nothing: set it to 0",
        ),
        ("number", {"finetune.label_smoothing": 0.1}, r"finetune\.label_smoothing: prepare\.target is number"),
        ("grade", {"finetune.loss": "huber"}, r"knows no loss huber: auto$"),
        (
            "labels",
            {"finetune.early_stopping.monitor": "val_accuracy"},
            r"target is labels, of which val_accuracy is not measured: use auto, val_loss, val_mean_ap, val_macro_f1",
        ),
    ],
)
def test_what_makes_no_sense_for_a_target_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    lay_out(kind)
    with pytest.raises(UserError, match=said):
        run(changes)
    assert not Path("cache").exists()


def test_a_figure_that_no_epoch_defines_can_t_be_monitored(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = lay_out("number")
    constant = {split: np.full_like(read_values(split, prepared.folder), 7.0) for split in ("train", "validation")}
    monkeypatch.setattr("headstart.training.datamodule.read_values", lambda split, _: constant[split])
    with pytest.raises(
        UserError, match=r"early_stopping\.monitor: val_r2 is undefined on these validation images: use"
    ):
        run({"finetune.early_stopping.monitor": "val_r2"})


CORRECTIONS: dict[str, dict[str, Any]] = {
    "class_weights": {"finetune.class_weights": "balanced"},
    "logit_adjustment": {"finetune.logit_adjustment": 1.0},
    "sampling": {"finetune.sampling": "balanced"},
    "label_smoothing": {"finetune.label_smoothing": 0.1},
    "mixup": {"finetune.augment.mixup": 0.4, "finetune.augment.cutmix": 1.0},
}


@pytest.mark.parametrize("kind", ["class", "labels", "grade"])
def test_every_correction_changes_the_training_and_not_what_is_measured(kind: str) -> None:
    """With one step an epoch on all images, so that sampling is seen in the step alone."""
    lay_out(kind)
    found: dict[str, dict[str, Tensor]] = {}
    start = set()
    for name, changes in {"plain": {}, **CORRECTIONS}.items():
        found[name] = run({**changes, "finetune.epochs": 1, "finetune.batch_size": 32})
        start.add(history()[0]["val_loss"])
    assert len(start) == 1
    for name, weights in found.items():
        apart = [float((weights["fc.weight"] - each["fc.weight"]).abs().max()) for each in found.values()]
        assert sum(each < 1e-6 for each in apart) == 1, name


def test_rare_classes_gain_by_each_correction_in_proportion(caplog: pytest.LogCaptureFixture) -> None:
    """The first step of the bias, from zero, is the gradient's: weights and sampling make the classes' sums equal."""
    prepared = lay_out("labels")
    values = read_values("train")
    base: dict[str, Any] = {
        "finetune.epochs": 1,
        "finetune.batch_size": 35,
        "finetune.augment.hflip": 0.0,
        "finetune.warmup_epochs": 0,
    }
    base |= {"finetune.momentum": 0.0, "finetune.nesterov": False, "finetune.recipe": "full"}
    rate = 0.02
    plain = run(base)["fc.bias"].numpy() / rate
    known = ~np.isnan(values)
    np.testing.assert_allclose(plain, np.where(known, np.nan_to_num(values) - 0.5, 0).sum(0) / 35, rtol=1e-4)
    weighted = run({**base, "finetune.class_weights": "balanced"})["fc.bias"].numpy() / rate
    np.testing.assert_allclose(weighted, 0, atol=1e-5)
    adjusted = run({**base, "finetune.logit_adjustment": 1.0})["fc.bias"].numpy() / rate
    priors = 1 / (1 + np.exp(-np.asarray(prepared.target.log_priors(values))))
    np.testing.assert_allclose(adjusted, np.where(known, np.nan_to_num(values) - priors, 0).sum(0) / 35, atol=1e-5)
    assert "more than once" not in caplog.text
    run({**base, "finetune.class_weights": "balanced", "finetune.sampling": "sqrt"})
    assert "finetune.sampling and finetune.class_weights: each makes up for what is rare" in caplog.text


RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "labels, balanced": ("labels", {"finetune.sampling": "balanced", "finetune.augment.mixup": 0.4}),
    "number, sqrt": ("number", {**QUANTILE, "finetune.sampling": "sqrt", "finetune.accumulate": 2}),
    "grade, averaged": (
        "grade",
        {
            "finetune.sampling": "balanced",
            "finetune.ema": 0.9,
            "finetune.optimizer": "adam",
            "finetune.clip": 1.0,
            "finetune.lr": {"backbone": 1e-3, "head": 1e-2},
        },
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_within_an_epoch_it_is_the_same_training(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, changes = RESUMED[case]
    lay_out(kind)
    expected, rows = run({**changes, "run.cache": "whole"}), history()
    left, parts = {(0, 1), (1, 2), (2, STEPS - 1)}, changes.get("finetune.accumulate", 1)
    real = FineTuner.training_step

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        place = (self.current_epoch, batch_idx // parts)
        if place in left:
            left.remove(place)
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", interrupted)
    for _ in range(3):
        with pytest.raises(SystemExit):
            run({**changes, "run.cache": "parts"})
    found = run({**changes, "run.cache": "parts"})
    assert not left
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert history() == rows
    if kind == "grade":
        for file in (FINETUNE / "model.safetensors", FINETUNE / "raw" / "model.safetensors"):
            weight = load_file(file)["fc.weight"]
            assert all(torch.equal(weight[0], row) for row in weight)
            assert float(weight.abs().max()) > 0


def test_rows_of_a_history_are_json_whatever_is_undefined() -> None:
    """Of constant outputs, as a head of zeros has them, there is no rank correlation."""
    lay_out("number")
    run({"finetune.recipe": "full", "finetune.epochs": 1})
    start, last = history()
    assert start["val_spearman"] == ""
    assert last["val_spearman"]
    assert read_json(paths.report_of("finetune"))["start_val_spearman"] is None
    assert json.loads(json.dumps(Try(0, {}, 1, [{"val_spearman": None}]).rows, allow_nan=False))
