"""The plan of a training: what params mean for one model."""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from headstart.core.errors import UserError
from headstart.models.backbone import get_head
from headstart.models.head import Head, write_heads
from headstart.targets.classes import Classes
from headstart.training.phases import TrainingPlan, describe, starting_model
from helpers.images import params

SMALL = {"backbone.name": "test_resnet", "backbone.pretrained": False}
WIDTH, CLASSES = 96, 4


@pytest.fixture(autouse=True)
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Head]:
    """The probe's: the chosen one at λ = 1e-5, and one at 1e-2."""
    monkeypatch.chdir(tmp_path)
    made = [
        Head(np.full((CLASSES, WIDTH), value, np.float32), np.full(CLASSES, value, np.float32), l2)
        for value, l2 in ((3.0, 1e-5), (1.0, 1e-2))
    ]
    write_heads(made, 0)
    return made


def start(
    changes: dict[str, Any], steps_per_epoch: int = 20, l2: dict[str, Any] | None = None, **given: Any
) -> tuple[nn.Module, TrainingPlan]:
    wanted = params({**SMALL, **{f"finetune.{key}": value for key, value in changes.items()}})
    finetune = wanted.finetune
    if l2 is not None:  # which params refuse without pretrained weights
        finetune = finetune.model_copy(update={"l2": type(finetune.l2).model_validate(l2)})
    images = steps_per_epoch * finetune.batch_size
    given = {"target": Classes([*"abcd"]), "train_images": images, "train_bytes": 1, **given}
    return starting_model(wanted.backbone, finetune, **given)


def test_the_model_is_of_the_images_bands_and_a_group_can_be_its_stem() -> None:
    rules = [{"name": name, "match": match, "biases_and_norms": "out"} for name, match in (("a", "stem"), ("b", ".*"))]
    changes = {"groups": rules, "lr": {"a": 0.5, "b": 0.1}, "l2": {"kind": "none"}, "recipe": "full"}
    model, plan = start(changes, in_chans=5)
    (stem,) = next(group for group in plan.groups if group.name == "a").parameters.values()
    assert stem.shape[1] == 5
    assert next(model.parameters()) is stem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recipe": "lp_ft"}, 1.0),  # at λ = 1e-3 of the head, the chosen one would be steep
        ({"recipe": "gradual", "l2": {"kind": "none"}}, 3.0),
        ({"recipe": "full"}, 0.0),
        ({"recipe": "head_first"}, 0.0),
    ],
)
def test_the_head_starts_where_the_strategy_says(changes: dict[str, Any], expected: float) -> None:
    head = get_head(start(changes)[0])
    assert set(head.weight.flatten().tolist()) == {expected}
    assert set(head.bias.flatten().tolist()) == {expected}


def phases(changes: dict[str, Any]) -> list[set[str]]:
    return start(changes)[1].phases


def test_the_phases_are_the_strategies() -> None:
    everything = phases({"recipe": "lp_ft"})[0]
    assert phases({"recipe": "full"}) == [everything]
    assert phases({"recipe": "head_first"}) == [{"fc.weight", "fc.bias"}, everything]
    gradual = phases({"recipe": "gradual"})
    assert gradual[0] == {"fc.weight", "fc.bias"}
    assert gradual[-1] == everything
    assert len(gradual) == 6  # the head, layer4 to layer1, the stem
    assert all(earlier < later for earlier, later in pairwise(gradual))
    assert {name.split(".")[0] for name in gradual[1] - gradual[0]} == {"layer4"}


def test_too_few_epochs_for_the_phases_are_refused() -> None:
    assert len(phases({"recipe": "gradual", "epochs": 11, "phase_epochs": 2})) == 6
    with pytest.raises(
        UserError, match=r"gradual has 6 phases on this backbone, of 2 epochs each .* more than 10, not 10"
    ):
        phases({"recipe": "gradual", "epochs": 10, "phase_epochs": 2})


def test_the_anchored_are_all_but_the_head() -> None:
    model, plan = start({"recipe": "full"}, l2={"kind": "l2_sp", "backbone": 0.1, "head": 0.1})
    names = {name for name, _ in model.named_parameters()}
    assert names - plan.anchored == {"fc.weight", "fc.bias"}
    assert start({})[1].anchored == set()


def described(changes: dict[str, Any], steps_per_epoch: int = 20) -> list[dict[str, Any]]:
    return describe(start(changes, steps_per_epoch)[1])


def test_an_inert_decay_is_warned_of_with_what_would_be_noticeable(caplog: pytest.LogCaptureFixture) -> None:
    """AdamW at learning rate and decay 1e-4, as many trainers have it."""
    changes: dict[str, Any] = {
        "optimizer": "adamw",
        "l2": {"kind": "decoupled"},
        "lr": {"backbone": 1e-4, "head": 1e-4},
    }
    with caplog.at_level(logging.WARNING):
        described({**changes, "decay": {"backbone": 1e-4, "head": 1e-4}}, steps_per_epoch=1000)
    backbone, head = sorted(record.getMessage() for record in caplog.records)
    assert backbone.startswith("finetune.decay.backbone: 1.0e-04 has no effect to speak of: in 10000 steps")
    assert head.startswith("finetune.decay.head: 1.0e-04 has no effect")
    matters = float(backbone.split("about ")[1].split(" ")[0])
    caplog.clear()
    (row, *_) = [
        row
        for row in described({**changes, "decay": {"backbone": matters, "head": matters}}, steps_per_epoch=1000)
        if row["group"] == "backbone"
    ]
    assert row["expected_shrink"] == pytest.approx(0.01, rel=0.05)
    assert not caplog.records


def test_the_defaults_are_not_inert_and_adams_are_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = {row["group"]: row for row in described({})}
        assert 1e-3 < rows["backbone"]["expected_shrink"] < rows["head"]["expected_shrink"] < 0.05
        assert rows["backbone_free"]["expected_shrink"] == 0
        assert {row["expected_shrink"] for row in described({"optimizer": "adamw"})} == {None}
        described({"l2": {"kind": "none"}})
    assert not caplog.records


def test_a_group_that_trains_later_is_expected_to_shrink_less() -> None:
    together, later = (
        {row["group"]: row["expected_shrink"] for row in described({"recipe": recipe, "phase_epochs": 5})}
        for recipe in ("full", "head_first")
    )
    assert later["head"] == together["head"]
    assert later["backbone"] < 0.6 * together["backbone"]


def test_a_group_whose_parameters_are_all_free_needs_no_warning() -> None:
    norms = {"name": "norms", "match": r"backbone\..*bn\d\..*", "biases_and_norms": "out"}
    rest = {"name": "rest", "match": ".*", "biases_and_norms": "out"}
    numbers = {"norms": 0.01, "rest": 0.01}
    rows = described({"groups": [norms, rest], "lr": numbers, "l2": {"kind": "l2", **numbers}})
    assert {row["group"] for row in rows} == {"norms_free", "rest", "rest_free"}


def test_l2_sp_warns_of_the_distance(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        describe(start({"recipe": "full"}, l2={"kind": "l2_sp", "backbone": 1e-7, "head": 0.0})[1])
    (record,) = caplog.records
    assert "off the distance from the pretrained weights" in record.getMessage()
