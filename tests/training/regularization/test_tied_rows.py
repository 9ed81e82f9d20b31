"""Rows of a head that are tied: they stay equal to the bit, and the steps are those of the one row that they are."""

import itertools

import pytest
import torch
from torch import nn

from headstart.models.backbone import get_head
from headstart.targets.grade import Grades
from headstart.training.losses import warmup_cosine
from helpers import regularised
from helpers.regularised import (
    BATCH,
    CONFIG,
    KINDS,
    OPTIMIZERS,
    STEPS,
    Batches,
    Model,
    Setting,
    groups_of,
    product,
    settings_of,
)

GRADES = Grades([*"abcd"])
SETTINGS = [
    Setting(kind, optimizer, clip, precision=precision)
    for kind, optimizer, clip, precision in itertools.product(KINDS, OPTIMIZERS, (None, 0.05), ("64-true", "32-true"))
    if not (kind == "decoupled" and optimizer == "adam")
]


class TiedModel(Model):
    """Of an odd width, whose ends the kernels compute by other code, with equal rows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layer, self.fc = nn.Linear(48, 7), nn.Linear(7, 3)
        with torch.no_grad():
            self.fc.weight[1:] = self.fc.weight[:1]


@pytest.fixture(autouse=True)
def tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regularised, "Model", TiedModel)
    monkeypatch.setattr(regularised, "TARGET", GRADES)


def row_of(setting: Setting) -> torch.Tensor:
    weight = product(setting)["fc.weight"]
    assert all(torch.equal(weight[0], row) for row in weight)
    assert float((weight[0] - get_head(TiedModel()).weight[0]).detach().abs().max()) > 1e-3
    return weight[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_they_stay_equal(setting: Setting) -> None:
    row_of(setting)


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1 / 3), ("sgd, Nesterov", 1 / 3), ("adam", 1.0)])
def test_the_steps_are_those_of_the_one_row(optimizer: str, factor: float) -> None:
    """Its gradient and penalty are the three rows' together: a third of SGD's rate, and Adam's own."""
    setting, model = Setting("l2", optimizer), TiedModel().double()
    row = nn.Parameter(model.fc.weight[:1].detach().clone())
    groups = {group.name: group for group in groups_of(model, "l2")}
    parameters = [*model.layer.parameters(), model.fc.bias, row]
    rates = [groups["backbone"].lr] * 2 + [groups["head"].lr, groups["head"].lr * factor]
    settings = [{"params": [each], "lr": rate} for each, rate in zip(parameters, rates, strict=True)]
    name, momentum, nesterov = OPTIMIZERS[optimizer]
    stepping = (
        torch.optim.Adam(settings)
        if name == "adam"
        else torch.optim.SGD(settings, lr=0.0, momentum=momentum, nesterov=nesterov)
    )
    mean, std = (torch.tensor(CONFIG[key], dtype=torch.float64) for key in ("mean", "std"))
    for step, batch in enumerate(Batches(1).parts):
        for each, rate in zip(stepping.param_groups, rates, strict=True):
            each["lr"] = rate * warmup_cosine(step, round(settings_of(setting).warmup_epochs * STEPS), STEPS)
        inputs = ((batch.pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
        hidden = torch.tanh(model.layer(inputs.flatten(1)))
        outputs = hidden @ row.expand(3, -1).T + model.fc.bias
        penalty = groups["backbone"].l2 * model.layer.weight.square().sum() + groups["head"].l2 * 3 * row.square().sum()
        loss = GRADES.losses(outputs, batch.values).sum() / BATCH + penalty
        stepping.zero_grad()
        torch.autograd.backward(loss)
        stepping.step()
    torch.testing.assert_close(row_of(setting), row[0].detach(), rtol=1e-6, atol=1e-9)
