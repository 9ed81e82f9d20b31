"""What the training step does beside the loss; the loss itself is in regularization/test_penalty.py."""

import traceback

import numpy as np
import pytest
import torch

from headstart.targets.classes import Classes
from headstart.training.module import FineTuner
from headstart.training.phases import TrainingPlan
from helpers.regularised import BATCH, CONFIG, STEPS, Model, Setting, groups_of, settings_of


def fine_tuner() -> FineTuner:
    setting, model = Setting("l2", "sgd"), Model()
    plan = TrainingPlan(
        settings_of(setting),
        groups_of(model, setting.kind),
        phases=[{"fc.weight", "fc.bias"}, {name for name, _ in model.named_parameters()}],
        anchored=set(),
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        freeze_statistics=False,
        target=Classes([*"abc"]),
    )
    return FineTuner(model, plan, image_config=CONFIG)


def test_a_step_is_seeded_as_by_torch_and_formats_no_call_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.manual_seed does for each kind of accelerator that is not in use, which took longer than the rest."""
    module, expected = fine_tuner(), dict[int, torch.Tensor]()
    for batch in (3, 63, 64, 200):
        torch.manual_seed(int(np.random.SeedSequence((module.plan.finetune.seed, 0, batch, 0)).generate_state(1)[0]))
        expected[batch] = torch.rand(5)
    assert len({tuple(drawn.tolist()) for drawn in expected.values()}) == 4
    monkeypatch.setattr(traceback, "format_stack", lambda *_: pytest.fail("formatted a call stack"))
    for batch, drawn in expected.items():
        module.seed_step(batch)
        assert torch.equal(torch.rand(5), drawn)


def test_a_phase_freezes_all_but_its_parameters() -> None:
    module = fine_tuner()
    for phase, names in enumerate(module.plan.phases):
        module.set_phase(phase)
        assert {name for name, value in module.model.named_parameters() if value.requires_grad} == names
