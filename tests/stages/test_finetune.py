"""Fine-tuning: its promises on a small model and invented images."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import load_file
from timm.layers.norm_act import convert_sync_batchnorm
from timm.models import save_for_hf
from torch import Tensor
from torch._dynamo.utils import counters

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_table, write_json
from headstart.core.paths import FINETUNE
from headstart.data.dataset import PreparedDataset
from headstart.models.backbone import create_backbone
from headstart.models.head import Head, write_heads
from headstart.stages import finetune
from headstart.training import batch_size
from headstart.training.autotune import check_precision
from headstart.training.callbacks import EpochReport
from headstart.training.datamodule import Batch, BatchSpec, TrainDataset
from headstart.training.module import FineTuner
from helpers.images import INPUT, params, write_prepared

SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "run.cache": "cache",
    "finetune.epochs": 3,
    "finetune.batch_size": 8,
    "finetune.batch_norm": "frozen",
    "finetune.lr": {"backbone": 0.05, "head": 0.05},
    "finetune.augment.hflip": 0.5,
}


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared({"train": 35, "validation": 13, "test": 4})
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    return prepared


def run(changes: dict[str, Any] | None = None) -> dict[str, Tensor]:
    finetune.run(params({**SMALL, **(changes or {})}).declared(finetune.PARAMS))
    return load_file(FINETUNE / "model.safetensors")


def history() -> list[dict[str, str]]:
    rows = read_table(paths.HISTORY)
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_auto_augmentation_follows_the_probe_and_is_the_run_of_the_values_written_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    verdict = {"reason": "its evidence", "kept": True}
    write_json(paths.AUGMENTATION, {"reason": None, "changes": {"vflip": verdict}})
    caplog.set_level(logging.INFO)
    chosen = run({f"finetune.augment.{name}": "auto" for name in ("hflip", "vflip", "quarter_turn")})
    assert "finetune.augment.vflip: 0.5; its evidence" in caplog.text
    runs = sorted(path.name for path in Path("cache/runs").iterdir())
    written = run({"finetune.augment.hflip": 0.0, "finetune.augment.vflip": 0.5})
    assert sorted(path.name for path in Path("cache/runs").iterdir()) == runs
    assert largest_difference(chosen, written) == 0
    assert largest_difference(chosen, run({"finetune.augment.hflip": 0.0})) > 0


def test_the_result_loads_in_timm_and_is_the_best_epoch_of_the_history() -> None:
    run()
    report = json.loads(Path("reports/finetune.json").read_text())
    rows = history()
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    losses = [float(row["val_loss"]) for row in rows]
    assert report["best_epoch"] == int(np.argmin(losses))
    assert report["val_loss"] == min(losses)
    model = timm.create_model(f"local-dir:{FINETUNE}", pretrained=True)
    config: Any = model.pretrained_cfg
    assert model.num_classes == 4
    assert config["label_names"] == ["cat", "dog", "owl", "yak"]
    assert losses[-1] < losses[0]


def test_the_penalty_in_the_loss_and_in_the_optimiser_are_the_same() -> None:
    # A seed whose steps come near no kink of ReLU, where rounding would be amplified.
    l2 = {"finetune.l2": {"kind": "l2", "backbone": 0.01, "head": 0.1}, "finetune.seed": 1}
    fused = run(l2)
    unpenalised = run({"finetune.l2.kind": "none", "finetune.seed": 1})
    # A bound that never binds leaves the gradients alone, and puts the penalty in the loss.
    written_out = run({**l2, "finetune.clip": 1e6})
    assert largest_difference(fused, written_out) < 1e-5
    assert largest_difference(fused, unpenalised) > 1e-3


def test_parts_that_a_gpu_needs_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def three(_: EpochReport, trainer: Trainer, __: LightningModule) -> None:
        """As AccumulationFinder does on a GPU."""
        trainer.accumulate_grad_batches = 3

    whole = run()
    monkeypatch.setattr(EpochReport, "on_fit_start", three)
    assert largest_difference(whole, run({"run.cache": "another"})) < 1e-5


def test_a_compiled_model_trains_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "check_compiling", lambda *_: None)
    counters.clear()
    assert largest_difference(run(), run({"finetune.compile": True})) < 1e-4
    assert counters["frames"]["ok"] > 0


def test_accumulated_parts_give_the_same_weights() -> None:
    assert largest_difference(run(), run({"finetune.accumulate": 3})) < 1e-5


def test_parts_that_a_cpu_s_memory_needs_give_the_same_weights_and_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run()
    monkeypatch.setattr(batch_size, "images_that_fit", lambda *_: (4, 1e9))
    split = run({"run.cache": "another"})
    assert largest_difference(whole, split) < 1e-5
    assert "finetune.batch_size: 8 images at a time take about" in caplog.text
    assert "so a batch is computed in 2 parts instead of 1" in caplog.text


def test_frozen_means_frozen() -> None:
    """With a phase of the head alone of all epochs but one, and a last epoch at the backbone's learning rate zero."""
    start = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4).state_dict()
    changes = {
        "finetune.recipe": "head_first",
        "finetune.phase_epochs": 2,
        "finetune.lr": {"backbone": 0.0, "head": 0.05},
        "finetune.batch_norm": "frozen",
    }
    weights = run({**changes, "finetune.l2": {"kind": "l2", "backbone": 0.1, "head": 0.1}})
    moved = {name for name in start if not torch.equal(start[name], weights[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_with_training_statistics_a_batch_that_does_not_fit_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_size, "images_that_fit", lambda *_: (4, 1e9))
    with pytest.raises(
        UserError, match=r"finetune\.batch_size: 8 images .* set it to 4 or less, or finetune\.batch_norm"
    ):
        run({"finetune.batch_norm": "train"})
    assert not list(Path("cache").glob("runs/*/start.json"))


@pytest.mark.parametrize("accumulate", [1, 5])
def test_one_image_at_a_time_trains_but_not_batch_norm_on_maps_of_one_pixel(accumulate: int) -> None:
    """The last map of 32 pixels' is one, and parts of 9 in 5 are 2 images and 1."""
    one: dict[str, Any] = {"finetune.batch_size": 1 if accumulate == 1 else 9, "finetune.accumulate": accumulate}
    one |= {"finetune.epochs": 1, "finetune.lr": {"backbone": 1e-4, "head": 1e-4}}
    with pytest.raises(UserError, match=r"finetune\.batch_size: BatchNorm needs 2 images or more at a time.*: frozen"):
        run({**one, "finetune.batch_norm": "train"})
    assert not list(Path("cache").glob("runs/*/start.json"))
    run(one)


def test_training_statistics_move() -> None:
    start = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4).state_dict()
    weights = run({"finetune.batch_norm": "train"})
    assert not torch.equal(start["layer1.0.bn1.running_mean"], weights["layer1.0.bn1.running_mean"])


def test_an_early_stop_is_kept() -> None:
    changes = {
        "finetune.epochs": 30,
        "finetune.lr": {"backbone": 0.0, "head": 1e-9},
        "finetune.early_stopping": {"monitor": "val_loss", "patience": 2, "min_delta": 0.01},
    }
    first = run(changes)
    report = json.loads(Path("reports/finetune.json").read_text())
    assert report["stopped_early"]
    assert report["epochs"] == 3
    again = run(changes)
    assert json.loads(Path("reports/finetune.json").read_text())["epochs"] == 3
    assert largest_difference(first, again) == 0


VAL_LOSSES = [1.0, 0.8, 0.9, 0.85, 0.81, 0.82, 0.5]


@pytest.mark.parametrize("interrupted_at", [None, 2, 4])
def test_it_stops_when_the_best_epoch_is_patience_epochs_ago(
    monkeypatch: pytest.MonkeyPatch, interrupted_at: int | None
) -> None:
    """The board's rule, ep - best_ep >= es: with the best epoch 2 and a patience of 3 after epoch 5, stopped or not."""

    def scripted(self: Any) -> None:
        self.log("val_loss", VAL_LOSSES[self.current_epoch] if self.trainer.state.fn == "fit" else 9.0)
        self.log("val_refined_loss", 0.1)
        self.log("val_accuracy", 0.5)
        self.val_loss.reset()
        self.val_refined_loss.reset()

    real = FineTuner.training_step

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == interrupted_at:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "on_validation_epoch_end", scripted)
    changes = {
        "finetune.epochs": len(VAL_LOSSES),
        "finetune.early_stopping": {"monitor": "val_loss", "patience": 3, "min_delta": 0.0},
    }
    if interrupted_at is not None:
        monkeypatch.setattr(FineTuner, "training_step", interrupted)
        with pytest.raises(SystemExit):
            run(changes)
        monkeypatch.setattr(FineTuner, "training_step", real)
    run(changes)
    report = json.loads(Path("reports/finetune.json").read_text())
    assert (report["best_epoch"], report["epochs"], report["stopped_early"]) == (2, 5, True)


def test_gradual_unfreezing_moves_each_stage_from_its_phase_on() -> None:
    """After each phase, what has moved is what has trained; with every group in the optimiser from the first step."""
    start = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4).state_dict()
    moved, real = [], FineTuner.on_train_epoch_start
    for epochs in range(1, 7):
        seen: dict[str, Any] = {}

        def keep(self: Any, seen: dict[str, Any] = seen) -> None:
            real(self)
            seen |= {name: value.detach().clone() for name, value in self.model.named_parameters()}
            seen["groups"] = len(self.trainer.optimizers[0].param_groups)
            if self.current_epoch == epochs:  # noqa: B023  (called in this round of the loop only)
                signal.raise_signal(signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FineTuner, "on_train_epoch_start", keep)
            with pytest.raises(SystemExit):
                run({"finetune.recipe": "gradual", "finetune.epochs": 7, "run.cache": f"cache{epochs}"})
        assert seen.pop("groups") == 4
        moved.append({name.split(".")[0] for name, value in seen.items() if not torch.equal(value, start[name])})
    assert moved[0] == {"fc"}
    assert moved[1] == {"fc", "layer4"}
    assert moved[4] == {"fc", "layer4", "layer3", "layer2", "layer1"}
    assert {"conv1", "bn1"} & moved[5]


def test_l2_sp_stays_nearer_to_the_start_than_l2() -> None:
    """With λ so large that it decides; from weights that count as pretrained."""
    weights = {}
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 96)).astype(np.float32)
    write_heads([Head(noise, np.zeros(4, np.float32), 1e-3)], 0)
    model = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4)
    start = model.state_dict()
    save_for_hf(model, "pretrained", safe_serialization=True, model_config={"pretrained_cfg": INPUT})
    for kind in ("l2", "l2_sp", "none"):
        strong = {"kind": kind, "backbone": 1.0, "head": 1e-3}
        weights[kind] = run(
            {
                "finetune.l2": strong,
                "finetune.lr": {"backbone": 0.01, "head": 0.01},
                "backbone.name": "local-dir:pretrained",
                "backbone.pretrained": True,
            }
        )
    convolutions = [name for name, value in start.items() if value.ndim == 4]
    distance = {
        kind: sum(float((found[name] - start[name]).square().sum()) for name in convolutions) ** 0.5
        for kind, found in weights.items()
    }
    assert distance["l2_sp"] < 0.9 * distance["none"]
    assert distance["none"] < 0.5 * distance["l2"]


def test_the_ledger_is_in_the_report_and_in_its_table() -> None:
    run()
    report, rows = json.loads(Path("reports/finetune.json").read_text()), read_table(paths.LEDGER)
    assert {row["group"] for row in report["ledger"]} == {"head", "head_free", "backbone", "backbone_free"}
    assert len(rows) == 3 * 4
    kept = [row for row in rows if int(row["epoch"]) == report["best_epoch"]]
    assert [float(row["norm"]) for row in kept] == [row["norm"] for row in report["ledger"]]
    penalties = [sum(float(row["penalty"]) for row in rows if row["epoch"] == str(epoch)) for epoch in (1, 2, 3)]
    assert penalties == pytest.approx([float(row["penalty"]) for row in history()[1:]])
    assert {group["group"]: group["expected_shrink"] for group in report["groups"]}["backbone"] > 0


def test_without_resume_it_trains_anew() -> None:
    run()
    (state,) = Path("cache/runs").glob("*/last.ckpt")
    before = state.stat().st_mtime_ns
    run()
    assert state.stat().st_mtime_ns == before
    run({"run.resume": False})
    assert state.stat().st_mtime_ns > before


def test_the_average_is_kept_with_the_raw_weights_beside_it() -> None:
    averaged = run(
        {"finetune.ema": 0.9, "finetune.early_stopping": {"monitor": "val_loss", "patience": 9, "min_delta": 0.0}}
    )
    raw = load_file(FINETUNE / "raw" / "model.safetensors")
    assert 1e-4 < largest_difference(averaged, raw) < 1


def test_the_start_is_in_the_average() -> None:
    averaged = run({"finetune.ema": 0.9, "finetune.recipe": "full", "finetune.epochs": 1, "finetune.batch_size": 35})
    raw = load_file(FINETUNE / "raw" / "model.safetensors")  # one step away from a head of zeros
    assert float(raw["fc.weight"].abs().max()) > 0
    torch.testing.assert_close(averaged["fc.weight"], 0.1 * raw["fc.weight"])


def test_a_start_that_training_only_makes_worse_is_what_is_kept(prepared: PreparedDataset) -> None:
    changes = {"finetune.lr": {"backbone": 0.0, "head": 30.0}, "finetune.epochs": 1, "finetune.warmup_epochs": 0}
    weights = run(changes)
    report = json.loads(Path("reports/finetune.json").read_text())
    assert report["best_epoch"] == 0
    assert report["val_accuracy"] == report["start_val_accuracy"]
    assert float(weights["fc.weight"].abs().max()) == 0
    assert len(prepared.classes) == 4


def test_a_loss_that_is_not_finite_stops_with_step_and_learning_rate() -> None:
    with pytest.raises(UserError, match=r"the loss is not finite in epoch 1, step 2, at learning rate 9.83e\+11"):
        run({"finetune.lr": {"backbone": 1e12, "head": 1e12}, "finetune.warmup_epochs": 0})
    assert not FINETUNE.exists()
    assert not list(Path("cache").rglob("*.ckpt"))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_asks_the_device_for_no_number(monkeypatch: pytest.MonkeyPatch, clip: float | None) -> None:
    """A GPU would be waited for. What is looked at now and then, and Lightning's own work, is left out."""
    asked: list[str] = []

    def noted(owner: Any, name: str, log: str | None = None) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if log is not None:
                asked.append(log)
                return real(*args, **kwargs)
            before = len(asked)
            result = real(*args, **kwargs)
            steps.append(asked[before:])
            return result

        monkeypatch.setattr(owner, name, call)

    steps: list[list[str]] = []
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        noted(Tensor, name, name)
    for name in ("training_step", "configure_gradient_clipping"):
        noted(FineTuner, name)
    run({"finetune.clip": clip, "finetune.augment.mixup": 0.4})
    assert len(steps) == 2 * 3 * 4
    assert "item" in asked or "__float__" in asked  # the notes work
    assert [step for step in steps if step] == []


def test_mixtures_train_on_both_labels_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    mixing = {"finetune.augment.mixup": 0.4, "finetune.augment.cutmix": 1.0, "finetune.class_weights": "balanced"}
    plain, mixed = run(), run(mixing)
    assert largest_difference(plain, mixed) > 1e-3
    assert largest_difference(mixed, run({**mixing, "finetune.accumulate": 2, "run.cache": "again"})) < 1e-5
    losses = [float(row["val_loss"]) for row in history()]
    assert min(losses[1:]) < losses[0]

    # With its own label as the partner's, whatever the share, a mixture's loss is the plain one.
    def own_partners(self: TrainDataset, spec: BatchSpec) -> Batch:
        labels = torch.from_numpy(self.values[spec.indices])
        return Batch(self._pixels(spec.epoch, spec.indices), labels, labels, torch.linspace(0, 1, len(labels)))

    monkeypatch.setattr(TrainDataset, "__getitem__", own_partners)
    assert largest_difference(plain, run({"run.cache": "third"})) < 1e-5


def test_balanced_weights_smoothing_and_adamw_train() -> None:
    changes = {"finetune.class_weights": "balanced", "finetune.label_smoothing": 0.1, "finetune.optimizer": "adamw"}
    run({**changes, "finetune.lr": {"backbone": 1e-3, "head": 1e-2}})
    losses = [float(row["val_loss"]) for row in history()]
    assert min(losses[1:]) < losses[0]


def test_a_precision_that_the_hardware_lacks_is_refused() -> None:
    wanted = params({"finetune.precision": "16-mixed"})
    with pytest.raises(UserError, match="16-mixed needs a CUDA GPU"):
        check_precision(wanted.finetune.precision, torch.device("cpu"))
    with pytest.raises(UserError, match="16-mixed needs a CUDA GPU"):
        finetune.run(wanted.declared(finetune.PARAMS))


def test_bfloat16_trains_near_float32() -> None:
    full = run()
    half = run({"finetune.precision": "bf16-mixed"})
    assert 0 < largest_difference(full, half) < 0.1


def test_models_with_two_classifiers_are_refused() -> None:
    with pytest.raises(UserError, match="several classifiers"):
        create_backbone(
            "deit_tiny_distilled_patch16_224", pretrained=False, image_size=None, args={"depth": 1}, num_classes=2
        )


def test_statistics_that_are_synchronised_on_gpus_leave_the_function_what_it_is() -> None:
    """torch's own conversion, which Lightning's flag makes, loses the activations within timm's layers."""
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    before, parameters = model(images), list(model.parameters())
    converted = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in converted.modules())
    torch.testing.assert_close(converted.eval()(images), before)
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    torchs: Any = timm.create_model("test_efficientnet", num_classes=3).eval()
    torchs = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torchs)  # type: ignore[no-untyped-call]
    torchs.load_state_dict(converted.state_dict())
    assert float((torchs(images) - before).abs().max().detach()) > 1e-3


@pytest.mark.parametrize(("l2", "told"), [(1e-9, True), (30.0, False)])
def test_a_lambda_that_did_nothing_under_adam_is_named(caplog: pytest.LogCaptureFixture, l2: float, told: bool) -> None:
    changes = {"finetune.optimizer": "adam", "finetune.lr": {"backbone": 1e-4, "head": 1e-2}, "finetune.epochs": 2}
    with caplog.at_level(logging.INFO):
        run({**changes, "finetune.l2": {"kind": "l2", "backbone": 0.0, "head": l2}})
    assert (f"finetune.l2.head: {l2:.1e} had no effect to speak of" in caplog.text) is told
    assert "finetune.l2.backbone" not in caplog.text
