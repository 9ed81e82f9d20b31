"""Which keys are searched, and which values are proposed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.models.head import Head, write_heads
from headstart.targets.classes import Classes
from headstart.training.losses import warmup_cosine
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import expected_shrink
from headstart.tuning.space import Space, with_changes


@pytest.fixture(autouse=True)
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head that a fine-tuning starts from."""
    monkeypatch.chdir(tmp_path)
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)


def given(finetune: dict[str, Any]) -> Params:
    backbone = {"name": "test_resnet", "pretrained": False}
    return parse_params({"backbone": backbone, "finetune": finetune}, partial=True)


def space(named: tuple[str, ...] = (), train_images: int = 640, **finetune: Any) -> Space:
    return Space(given(finetune), named, target=Classes([*"abcd"]), train_images=train_images, train_bytes=1)


def test_what_the_user_has_set_stays_unless_it_is_named() -> None:
    assert "finetune.label_smoothing" in space().keys
    assert "finetune.label_smoothing" not in space(label_smoothing=0.2).keys
    assert "finetune.label_smoothing" in space(("finetune.label_smoothing",), label_smoothing=0.2).keys
    assert "finetune.augment.hflip" not in space().keys
    assert "finetune.augment.hflip" in space(("finetune.augment.hflip",)).keys
    with pytest.raises(UserError, match=r"--search finetune\.momentun: has no range here; those that have one: .*lr"):
        space(("finetune.momentun",))


def test_the_optimiser_stays_where_a_learning_rate_does() -> None:
    keys = space(lr={"backbone": "auto", "head": 0.02}).keys
    assert "finetune.lr.backbone" in keys
    assert not {"finetune.lr.head", "finetune.optimizer"} & set(keys)


def test_try_0_has_the_params_as_they_are_and_the_others_cover_each_range() -> None:
    searched = space()
    epochs = searched.epochs
    assert searched.propose(0, epochs) == {}
    proposed = [searched.propose(number, epochs) for number in range(1, 17)]
    assert proposed == [space().propose(number, epochs) for number in range(1, 17)], "each follows from its number"
    for key in ("finetune.optimizer", "finetune.batch_norm", "finetune.clip"):
        values = [each[key] for each in proposed]
        assert 6 <= values.count(values[0]) <= 10
    for optimizer, usual in (("sgd", 0.03), ("adam", float(searched.resolved({}).lr["backbone"]))):
        rates = [each["finetune.lr.backbone"] for each in proposed if each["finetune.optimizer"] == optimizer]
        assert 0.1 * usual < min(rates) < 0.4 * usual
        assert 2.5 * usual < max(rates) < 10 * usual


@pytest.mark.parametrize("train_images", [100, 10_000])
def test_a_strength_of_sgd_takes_1_to_50_percent_off_the_weights_however_many_images(train_images: int) -> None:

    per_epoch = train_images // 64
    factors = np.array([warmup_cosine(step, per_epoch, 10 * per_epoch) for step in range(10 * per_epoch)])
    searched = space(train_images=train_images, optimizer="sgd", epochs=10, warmup_epochs=1)
    shrinks = []
    for number in range(1, 13):
        each = searched.propose(number, 10)
        group = Group("head", each["finetune.l2.head"], 0.0, each["finetune.lr.head"])
        shrinks.append(expected_shrink(group, "l2", "sgd", factors, 0.9))
    assert all(shrink is not None and 0.009 < shrink < 0.53 for shrink in shrinks)


def test_fewer_epochs_are_among_the_values() -> None:
    assert space().propose(0, 1) == {"finetune.epochs": 1}
    assert space(warmup_epochs=2).propose(0, 1) == {"finetune.epochs": 1, "finetune.warmup_epochs": 1}
    assert space().epochs_may_change
    assert not space(epochs=7).epochs_may_change
    assert space(("finetune.epochs",), epochs=7).epochs_may_change


def test_decoupled_decay_is_searched_in_its_own_unit() -> None:
    l2, decay = {"kind": "decoupled", "backbone": None, "head": None}, {"backbone": 0.05, "head": 0.05}
    searched = space(("finetune.decay.head",), l2=l2, decay=decay, optimizer="adamw")
    assert {"finetune.decay.head", "finetune.l2.head"} & set(searched.keys) == {"finetune.decay.head"}
    with_changes(given({"l2": l2, "decay": decay, "optimizer": "adamw"}), searched.propose(1, 10))
