"""Which keys are searched, and which values are proposed."""

from typing import Any

import numpy as np
import pytest

from headstart.core.errors import UserError
from headstart.training.losses import warmup_cosine
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import expected_shrink
from headstart.tuning.space import Space, with_changes
from helpers.images import params


def space(named: tuple[str, ...] = (), train_images: int = 640, **changes: Any) -> Space:
    return Space(params(changes), named, train_images)


def test_what_the_user_has_set_stays_unless_it_is_named() -> None:
    assert "finetune.label_smoothing" in space().keys
    assert "finetune.label_smoothing" not in space(**{"finetune.label_smoothing": 0.2}).keys
    assert "finetune.label_smoothing" in space(("finetune.label_smoothing",), **{"finetune.label_smoothing": 0.2}).keys
    assert "finetune.augment.hflip" not in space().keys
    assert "finetune.augment.hflip" in space(("finetune.augment.hflip",)).keys
    with pytest.raises(UserError, match=r"--search finetune\.momentun: has no range here; those that have one: .*lr"):
        space(("finetune.momentun",))


def test_the_optimiser_stays_where_a_learning_rate_does() -> None:
    keys = space(**{"finetune.lr.head": 0.02}).keys
    assert "finetune.lr.backbone" in keys
    assert not {"finetune.lr.head", "finetune.optimizer"} & set(keys)


def test_try_0_has_the_params_as_they_are_and_the_others_cover_each_range() -> None:
    searched = space()
    assert searched.propose(0, 10) == {}
    proposed = [searched.propose(number, 10) for number in range(1, 17)]
    assert proposed == [space().propose(number, 10) for number in range(1, 17)], "each follows from its number"
    for key in ("finetune.optimizer", "finetune.batch_norm", "finetune.clip"):
        values = [each[key] for each in proposed]
        assert 6 <= values.count(values[0]) <= 10
    rates = [each["finetune.lr.backbone"] for each in proposed if each["finetune.optimizer"] == "sgd"]
    assert max(rates) > 0.02
    assert min(rates) < 0.005
    for each in proposed:
        with_changes(params(), each)


@pytest.mark.parametrize("train_images", [100, 10_000])
def test_a_strength_of_sgd_takes_1_to_50_percent_off_the_weights_however_many_images(train_images: int) -> None:

    per_epoch = train_images // 64
    factors = np.array([warmup_cosine(step, per_epoch, 10 * per_epoch) for step in range(10 * per_epoch)])
    searched, shrinks = space(train_images=train_images, **{"finetune.optimizer": "sgd"}), []
    for number in range(1, 13):
        each = searched.propose(number, 10)
        if each.get("finetune.optimizer", "sgd") == "sgd":
            group = Group("head", each["finetune.l2.head"], 0.0, each["finetune.lr.head"])
            shrinks.append(expected_shrink(group, "l2", "sgd", factors, 0.9))
    assert all(shrink is not None and 0.009 < shrink < 0.53 for shrink in shrinks)


def test_fewer_epochs_are_among_the_values() -> None:
    assert space().propose(0, 1) == {"finetune.epochs": 1}
    assert space(**{"finetune.warmup_epochs": 2}).propose(0, 1) == {"finetune.epochs": 1, "finetune.warmup_epochs": 1}
