"""The ledger against the split that follows every step."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from headstart.training.regularization.ledger import COLUMNS, RegularizationLedger, ledger_table, with_ledger
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import expected_shrink, make_optimizer, penalty

EPOCHS, STEPS = 3, 30
SETTINGS = [
    *itertools.product(["l2", "l2_sp"], [("sgd", 0.0, False), ("sgd", 0.9, False), ("sgd", 0.9, True)], [None, 0.2]),
    *itertools.product(["decoupled"], [("sgd", 0.9, True), ("adamw", 0.9, False)], [None, 0.2]),
    ("l2", ("adam", 0.9, False), None),
    ("l2_sp", ("adamw", 0.9, False), 0.2),
]


class Fit:
    """A small float64 model trained with the ledger beside it, and every step split exactly."""

    def __init__(self, kind: Any, optimizer: Any, clip: float | None) -> None:
        name, momentum, nesterov = optimizer
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
            self.inputs = torch.randn(STEPS * 16, 6, dtype=torch.float64)
            self.labels = torch.randint(3, (STEPS * 16,))
        lr, strength = (0.001 if name != "sgd" else 0.005 if momentum else 0.02), 0.01
        names = dict(self.model.named_parameters())
        numbers = (0.0, strength) if kind == "decoupled" else (strength, 0.0)
        self.groups = [
            Group("backbone", *numbers, lr, {"0.weight": names["0.weight"]}),
            Group("head", *numbers, 2 * lr, {"2.weight": names["2.weight"]}),
            Group("free", 0.0, 0.0, lr, {key: names[key] for key in ("0.bias", "2.bias")}),
        ]
        self.start = {key: value.detach().clone() for key, value in names.items()}
        self.anchors = {"0.weight": self.start["0.weight"]} if kind == "l2_sp" else {}
        self.kind, self.clip, self.settings = kind, clip, {"momentum": momentum, "nesterov": nesterov}
        self.optimizer = make_optimizer(self.groups, name, kind, clipped=clip is not None, fused=True, **self.settings)
        self.in_loss = self.optimizer.param_groups[0]["weight_decay"] == 0 and kind != "decoupled"
        self.ledger = RegularizationLedger(
            self.groups,
            kind,
            start=self.start,
            anchors=self.anchors,
            first_phase=dict.fromkeys(names, 0),
            **self.settings,
        )
        self.pushed = {key: torch.zeros_like(value) for key, value in names.items()}  # the penalty in the momentum
        self.steps = 0

    def epoch(self, epoch: int) -> tuple[list[Any], dict[str, Tensor]]:
        """Train one; give the ledger's rows, and what the regulariser exactly took from each parameter."""
        taken = {key: torch.zeros_like(value) for key, value in self.start.items()}
        self.ledger.start_epoch(self.optimizer)
        for step in range(STEPS):
            factor = 1 - (epoch * STEPS + step) / (2 * EPOCHS * STEPS)
            for group, mine in zip(self.optimizer.param_groups, self.groups, strict=True):
                group["lr"] = mine.lr * factor
            part = slice(16 * step, 16 * step + 16)
            loss = F.cross_entropy(self.model(self.inputs[part]), self.labels[part])
            self.optimizer.zero_grad()
            torch.autograd.backward(loss + penalty(self.groups, self.anchors) if self.in_loss else loss)
            clipped = 1.0
            if self.clip is not None:
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                clipped = min(1.0, self.clip / float(norm))
            before = {key: value.detach().clone() for key, value in self.model.named_parameters()}
            self.ledger.step(factor, clipped, 0, self.optimizer)
            self.optimizer.step()
            self.split(before, taken, clipped)
        return self.ledger.end_epoch(epoch + 1, 1.0, self.optimizer), taken

    def split(self, before: dict[str, Tensor], taken: dict[str, Tensor], clipped: float) -> None:
        """Add what the regulariser took in one step, by the optimisers' own recurrences."""
        self.steps += 1
        mu = self.settings["momentum"]
        for group, settings in zip(self.groups, self.optimizer.param_groups, strict=True):
            for key, parameter in group.parameters.items():
                pull = before[key] - self.anchors.get(key, 0.0)
                if self.kind == "decoupled":
                    taken[key] += settings["lr"] * group.decay * pull
                    continue
                push = 2 * group.l2 * clipped * pull
                state = self.optimizer.state[parameter]
                if "exp_avg_sq" in state:
                    self.pushed[key] = mu * self.pushed[key] + (1 - mu) * push
                    second = (state["exp_avg_sq"] / (1 - 0.999**self.steps)).sqrt() + 1e-8
                    taken[key] += settings["lr"] * self.pushed[key] / (1 - mu**self.steps) / second
                else:
                    self.pushed[key] = mu * self.pushed[key] + push
                    felt = push + mu * self.pushed[key] if self.settings["nesterov"] else self.pushed[key]
                    taken[key] += settings["lr"] * felt


@pytest.mark.parametrize(("kind", "optimizer", "clip"), SETTINGS, ids=str)
def test_the_ledger_is_the_exact_split(kind: str, optimizer: Any, clip: float | None) -> None:
    """Within 8 % of what was exactly taken; for L2-SP, whose W - W₀ leaves 0 in a curve, after two epochs."""
    fit = Fit(kind, optimizer, clip)
    for epoch in range(EPOCHS):
        before = {key: value.detach().clone() for key, value in fit.model.named_parameters()}
        rows, taken = fit.epoch(epoch)
        after = {key: value.detach() for key, value in fit.model.named_parameters()}
        assert [row["group"] for row in rows] == ["backbone", "head", "free"]
        for row, group in zip(rows, fit.groups, strict=True):
            keys = list(group.parameters)
            assert row["norm"] == pytest.approx(norm(after, keys))
            assert row["distance"] == pytest.approx(norm({k: after[k] - fit.start[k] for k in keys}, keys))
            moved = norm({k: after[k] - before[k] + taken[k] for k in keys}, keys) / norm(before, keys)
            assert row["data_movement"] == pytest.approx(moved, rel=0.05)
            middle = {k: (before[k] + after[k]) / 2 - fit.anchors.get(k, 0.0) for k in keys}
            shrink = sum(float((middle[k] * taken[k]).sum()) for k in keys) / norm(middle, keys) ** 2
            if epoch == EPOCHS - 1 or not set(keys) & set(fit.anchors):
                assert row["shrink"] == pytest.approx(shrink, rel=0.12 if kind == "l2_sp" else 0.08)
            assert row["penalty"] == pytest.approx(
                group.l2 * norm({k: after[k] - fit.anchors.get(k, 0.0) for k in keys}, keys) ** 2
            )
            whole = 1.0 + sum(float(other["penalty"] or 0) for other in rows)
            assert row["penalty_share"] == pytest.approx(float(row["penalty"] or 0) / whole)


def norm(tensors: dict[str, Tensor], keys: list[str]) -> float:
    return float(torch.cat([tensors[key].flatten() for key in keys]).norm())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_total_shrink_is_the_estimate(momentum: float) -> None:
    """For SGD: 1 - Π(1 - 2τλ/(1 - μ)), but for the momentum's first ten of these 90 steps."""
    fit = Fit("l2", ("sgd", momentum, False), None)
    for epoch in range(EPOCHS):
        rows, _ = fit.epoch(epoch)
    factors = 1 - np.arange(EPOCHS * STEPS) / (2 * EPOCHS * STEPS)
    for row, group in zip(rows, fit.groups, strict=True):
        expected = expected_shrink(group, "l2", "sgd", factors, momentum)
        assert row["total_shrink"] == pytest.approx(expected, rel=0.15 if momentum else 0.01)


def test_the_equivalent_l2_is_one_over_twice_the_time() -> None:
    fit = Fit("l2", ("sgd", 0.0, False), None)
    rows, _ = fit.epoch(0)
    time = sum(1 - step / (2 * EPOCHS * STEPS) for step in range(STEPS))
    for row, group in zip(rows, fit.groups, strict=True):
        assert row["equivalent_l2"] == pytest.approx(1 / (2 * group.lr * time))
    rows, _ = Fit("l2", ("adam", 0.9, False), None).epoch(0)
    assert [row["equivalent_l2"] for row in rows] == [None] * 3


def test_resumed_it_is_the_same() -> None:
    whole, parted = Fit("l2", ("sgd", 0.9, True), 0.2), Fit("l2", ("sgd", 0.9, True), 0.2)
    for fit in (whole, parted):
        fit.epoch(0)
    state = parted.ledger.state_dict(mid_epoch=False)
    parted.ledger = RegularizationLedger(
        parted.groups,
        "l2",
        start=parted.start,
        anchors={},
        first_phase=dict.fromkeys(parted.start, 0),
        **parted.settings,
    )
    parted.ledger.load_state_dict(state, torch.device("cpu"))
    assert parted.epoch(1)[0] == whole.epoch(1)[0]


def test_what_does_not_train_yet_is_not_shrunk() -> None:
    fit = Fit("l2", ("sgd", 0.9, False), None)
    late = {name: int(name.startswith("0")) for name in fit.start}
    fit.ledger = RegularizationLedger(fit.groups, "l2", start=fit.start, anchors={}, first_phase=late, **fit.settings)
    fit.model[0].requires_grad_(requires_grad=False)
    backbone, head, _ = fit.epoch(0)[0]
    assert backbone["shrink"] == backbone["data_movement"] == 0
    assert backbone["equivalent_l2"] is None
    assert float(head["shrink"] or 0) > 0


def test_curves_and_table_show_the_rows() -> None:
    rows, _ = Fit("l2", ("sgd", 0.9, True), None).epoch(0)
    (flat,) = with_ledger([{"epoch": 1, "val_loss": 0.5}], rows)
    assert (flat["val_loss"], flat["backbone/norm"]) == (0.5, rows[0]["norm"])
    assert len(flat) == 2 + 3 * (len(COLUMNS) - 2)
    lines = ledger_table(rows).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[0] == "backbone"
    assert f"{rows[0]['norm']:.3f}" in lines[1]
