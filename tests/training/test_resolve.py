"""What `auto` stands for: from the images and the weights alone, written into params.yaml by one command."""

from pathlib import Path
from typing import Any

import pytest
import timm
from click.testing import CliRunner
from torch import nn

from headstart.cli import cli
from headstart.config.completion import complete_params, overlay_of
from headstart.config.finetune import FinetuneConfig
from headstart.config.loader import load_params
from headstart.core.io import read_json, write_report
from headstart.core.paths import report_of
from headstart.stages import finetune as stage
from headstart.targets.classes import Classes
from headstart.targets.kinds import make_target
from headstart.training.resolve import epochs_for, resolve
from helpers.images import ROOT, params, write_prepared, write_probe

AUTO = {
    "finetune.epochs": "auto",
    "finetune.optimizer": "adam",
    "finetune.lr": {"backbone": "auto", "head": "auto"},
    "finetune.warmup_epochs": "auto",
    "finetune.batch_norm": "auto",
    "finetune.early_stopping": {"monitor": "auto", "patience": "auto", "min_delta": 0.0},
    "finetune.ema": "auto",
    "finetune.augment.hflip": "auto",
    "finetune.augment.vflip": "auto",
    "finetune.augment.quarter_turn": "auto",
    "finetune.shuffle_windows": "auto",
}
VERDICTS = {"hflip": {"kept": True, "reason": "a"}, "vflip": {"kept": False, "reason": "b"}}
EVIDENCE = {"reason": None, "changes": VERDICTS}
TARGET = Classes([*"abcd"])
MANY: dict[str, Any] = {"target": TARGET, "train_images": 1000, "train_bytes": 1}
FEW = MANY | {"train_images": 100}


def section(changes: dict[str, Any] | None = None) -> FinetuneConfig:
    return params(AUTO | {f"finetune.{key}": value for key, value in (changes or {}).items()}).finetune


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Its backbone's weights are 0.1 in size, all but one tensor's."""
    made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    weights = [value for value in made.parameters() if value.ndim > 1]
    for value in weights:
        nn.init.constant_(value, 0.1)
    nn.init.constant_(weights[0], 7.0)
    return made


def test_what_params_yaml_says_is_the_schemas_auto() -> None:
    assert load_params(ROOT / "params.yaml").finetune == FinetuneConfig()
    assert section() == FinetuneConfig().model_copy(update={"precision": "32-true"})


@pytest.mark.parametrize(("images", "epochs"), [(1, 20), (64, 20), (1117, 18), (6400, 5), (10**6, 5)])
def test_few_images_get_more_epochs(images: int, epochs: int) -> None:
    assert epochs_for(images, 64) == epochs


def test_every_auto_is_replaced_and_told(model: nn.Module) -> None:
    resolved, choices = resolve(section(), model, **MANY, pretrained=True, evidence=EVIDENCE)
    told = {choice.key.removeprefix("finetune."): choice.value for choice in choices}
    assert told == {
        "epochs": 20,
        "lr.backbone": 3e-4,
        "lr.head": 3e-4,
        "warmup_epochs": 2.0,
        "batch_norm": "frozen",
        "shuffle_windows": 1,
        "early_stopping.monitor": "val_refined_loss",
        "early_stopping.patience": 10,
        "ema": 0.933333,
        "augment.hflip": 0.5,
        "augment.vflip": 0.0,
        "augment.quarter_turn": 0.0,
    }
    assert all(choice.reason for choice in choices)
    assert "auto" not in repr(resolved).replace("precision='auto'", "").replace(" loss='auto'", "")
    assert resolved.lr == {"backbone": 3e-4, "head": 3e-4}
    assert (resolved.early_stopping.patience, resolved.ema) == (10, 0.933333)


def test_a_value_in_the_file_wins(model: nn.Module) -> None:
    given = {"epochs": 3, "lr": {"backbone": "auto", "head": 0.5}, "batch_norm": "train", "ema": None}
    resolved, choices = resolve(section(given), model, **MANY, pretrained=True, evidence=EVIDENCE)
    assert (resolved.epochs, resolved.lr["head"], resolved.batch_norm, resolved.ema) == (3, 0.5, "train", None)
    assert (resolved.warmup_epochs, resolved.early_stopping.patience) == (0.9, 5)
    assert {choice.key.removeprefix("finetune.") for choice in choices} == {
        "lr.backbone",
        "warmup_epochs",
        "early_stopping.monitor",
        "early_stopping.patience",
        "shuffle_windows",
        "augment.hflip",
        "augment.vflip",
        "augment.quarter_turn",
    }


@pytest.mark.parametrize(("size", "windows"), [(2**34, 1), (2**34 + 1, 9), (58 * 2**30, 29)])
def test_images_that_fit_no_memory_are_shuffled_in_windows(model: nn.Module, size: int, windows: int) -> None:
    resolved, choices = resolve(
        section(), model, target=TARGET, train_images=10**6, train_bytes=size, pretrained=True, evidence=EVIDENCE
    )
    assert resolved.shuffle_windows == windows
    (reason,) = (choice.reason for choice in choices if choice.key == "finetune.shuffle_windows")
    assert reason == f"the training images take {size / 2**30:.1f} GiB"


def test_the_average_is_over_ten_steps_at_least(model: nn.Module) -> None:
    resolved, _ = resolve(section(), model, **FEW, pretrained=True, evidence=EVIDENCE)
    assert resolved.ema == 0.9


@pytest.mark.parametrize(
    ("changes", "pretrained", "lr"),
    [
        ({"recipe": "full"}, True, {"backbone": 3e-4, "head": 3e-3}),
        ({}, False, {"backbone": 3e-3, "head": 3e-3}),
        ({"optimizer": "sgd"}, True, {"backbone": 3e-3, "head": 3e-3}),
    ],
)
def test_what_starts_from_zero_or_at_random_learns_faster(
    model: nn.Module, changes: dict[str, Any], pretrained: bool, lr: dict[str, float]
) -> None:
    resolved, _ = resolve(
        section(changes),
        model,
        target=TARGET,
        train_images=1000,
        train_bytes=1,
        pretrained=pretrained,
        evidence=EVIDENCE,
    )
    assert resolved.lr == pytest.approx(lr)
    assert resolved.batch_norm == ("frozen" if pretrained else "train")


def test_the_command_writes_what_the_stage_chose_and_nothing_trains_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_probe(write_prepared(files=True), timm.create_model("test_resnet", num_classes=4))
    small = {"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 32}
    settings = params(AUTO | small | {"finetune.epochs": 2, "run.cache": "cache"})
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text, encoding="utf-8")
    complete_params(Path("params.yaml"), settings.model_dump())
    of_prepare = {"key": "prepare.channels", "value": "rgb", "reason": "8-bit colours"}
    write_report("prepare", {"chosen": [of_prepare]})
    stage.run(load_params(Path("params.yaml")))
    chosen = read_json(report_of("finetune"))["chosen"]
    assert {row["key"] for row in chosen} >= {"finetune.lr.head", "finetune.ema"}

    done = CliRunner().invoke(cli, ["resolve"])
    assert done.exit_code == 0, done.output
    written = load_params(Path("params.yaml"))
    assert written.finetune.lr == {
        row["key"].rpartition(".")[2]: row["value"] for row in chosen if ".lr." in row["key"]
    }
    assert written.prepare.channels == "rgb"
    assert "auto" not in repr(written.finetune).replace("precision='auto'", "").replace(" loss='auto'", "")
    monkeypatch.setattr("headstart.training.module.FineTuner.training_step", None)  # any step would fail
    stage.run(written)
    assert CliRunner().invoke(cli, ["resolve"]).output.splitlines() == ["params.yaml: nothing to change"]


def test_numbers_are_watched_by_their_loss_for_want_of_probabilities() -> None:
    _, choices = resolve(
        section(),
        timm.create_model("test_resnet"),
        target=make_target("number", ["weight"], {"units": ["kg"], "mean": [0.0], "scale": [1.0]}),
        train_images=100,
        train_bytes=1,
        pretrained=True,
        evidence=EVIDENCE,
    )
    monitor = next(choice for choice in choices if choice.key == "finetune.early_stopping.monitor")
    assert str(monitor).endswith("val_loss; numbers have no probabilities that could be put right later")


def test_an_overlay_nests_the_keys() -> None:
    resolved, choices = resolve(
        section(),
        timm.create_model("test_resnet"),
        target=TARGET,
        train_images=100,
        train_bytes=1,
        pretrained=True,
        evidence=EVIDENCE,
    )
    content = overlay_of({choice.key: choice.value for choice in choices})
    patience = resolved.early_stopping.patience
    assert content["finetune"]["early_stopping"] == {"monitor": "val_refined_loss", "patience": patience}
