"""What is counted of an epoch, whether it was interrupted or not."""

from typing import Any

import pytest
import torch

from headstart.config.finetune import ResolvedFinetuneConfig
from headstart.targets.classes import Classes
from headstart.training.history import CURVE_POINTS, TrainingHistory, curve_rows
from headstart.training.phases import TrainingPlan
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import make_optimizer
from helpers.images import params

STEPS, BATCH = 4, 10


class Epoch:
    """A training of one epoch, whose steps' losses and gradients' norms are given."""

    def __init__(self, clip: float | None = 1.0) -> None:
        weight = torch.nn.Parameter(torch.ones(3))
        groups = [Group("head", 0.1, 0.0, 0.5, {"weight": weight})]
        changes = {"finetune.epochs": 1, "finetune.clip": clip, "finetune.warmup_epochs": 0}
        finetune = ResolvedFinetuneConfig.model_validate(params(changes).finetune.model_dump())
        plan = TrainingPlan(
            finetune,
            groups,
            phases=[{"weight"}],
            anchored=set(),
            batch_size=BATCH,
            steps_per_epoch=STEPS,
            freeze_statistics=False,
            target=Classes([*"abc"]),
        )
        self.optimizer = make_optimizer(
            groups, "sgd", "l2", clipped=clip is not None, momentum=0.9, nesterov=True, fused=True
        )
        self.history, self.clip = TrainingHistory(plan, start={"weight": weight.detach().clone()}, anchors={}), clip

    def take(self, steps: range) -> None:
        """Each step in two batches."""
        for step in steps:
            self.history.add_loss(torch.tensor(float(step)), new_step=True)
            self.history.add_loss(torch.tensor(1.0), new_step=False)
            if self.clip is not None:
                self.history.add_gradient_norm(torch.tensor(step + 0.5))

    def end(self, losses: torch.Tensor) -> list[Any]:
        """Return all rows, times left out."""
        self.history.end_epoch(
            0,
            losses,
            phase=0,
            optimizer=self.optimizer,
            validation={"val_loss": 0.25, "val_refined_loss": 0.2, "val_accuracy": 0.5},
        )
        rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in self.history.rows]
        return [rows, self.history.ledger_rows, self.history.curve]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_an_epoch_that_is_resumed_has_the_rows_of_one_that_was_not_interrupted(clip: float | None, steps: int) -> None:
    whole, first, second, other_rank = (Epoch(clip) for _ in range(4))
    whole.history.start_epoch(whole.optimizer)
    whole.take(range(STEPS))
    expected = whole.end(whole.history.losses)

    first.history.start_epoch(first.optimizer)
    first.take(range(steps))
    saved = first.history.state_dict(first.history.losses)
    for rank, each in enumerate((second, other_rank)):
        each.history.load_state_dict(saved, rank=rank, device=torch.device("cpu"))
        assert each.history.steps == steps
    assert not other_rank.history.losses.any()
    second.take(range(steps, STEPS))
    assert second.end(second.history.losses) == expected
    assert second.history.steps == 0


def test_the_training_loss_is_the_mean_over_all_images() -> None:
    epoch = Epoch()
    epoch.history.start_epoch(epoch.optimizer)
    epoch.take(range(STEPS))
    rows, ledger, curve = epoch.end(epoch.history.losses)
    assert rows[0]["train_loss"] == pytest.approx((sum(range(STEPS)) + STEPS) / (STEPS * BATCH))
    assert rows[0]["penalty"] == ledger[0]["penalty"] == pytest.approx(0.3)
    assert [row["step/loss"] for row in curve] == pytest.approx([(step + 1) / BATCH for step in range(STEPS)])
    assert [row["step/gradient_norm"] for row in curve] == [step + 0.5 for step in range(STEPS)]


def test_a_curve_has_at_most_so_many_rows_whose_means_are_those_of_all_steps() -> None:
    losses = [float(step) for step in range(1000)]
    rows = curve_rows(3, 50, losses, None, groups=[Group("head", 0.0, 0.0, 0.1)], lr_factors=[1.0] * 1000)
    assert len(rows) == CURVE_POINTS
    assert (rows[0]["step"], rows[-1]["step"]) == (60, 1050)
    assert sum(row["step/loss"] for row in rows) / len(rows) == pytest.approx(499.5)
    assert {row["step/lr/head"] for row in rows} == {0.1}
    assert "step/gradient_norm" not in rows[0]
