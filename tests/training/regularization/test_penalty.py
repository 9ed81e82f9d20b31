"""The regulariser is exactly what its name says, wherever it acts (tests/regularised.py prints the whole table)."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from headstart.theory import oracle
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import (
    expected_shrink,
    l2_for_shrink,
    make_optimizer,
    penalty,
    penalty_location,
)
from helpers.regularised import (
    CLASSES,
    CONFIG,
    KINDS,
    OPTIMIZERS,
    STEPS,
    STRENGTH,
    Batches,
    Model,
    Setting,
    all_settings,
    difference,
    product,
    written_out,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("setting", list(all_settings()), ids=str)
def test_training_is_the_written_out_objective_in_float64(setting: Setting) -> None:
    assert difference(setting) < 1e-12


@pytest.mark.parametrize(
    "setting",
    [Setting(kind, optimizer, precision="bf16-mixed") for kind in ("l2", "l2_sp") for optimizer in ("sgd", "adamw")]
    + [
        Setting("l2", "sgd, momentum", 0.3, precision="bf16-mixed"),
        Setting("decoupled", "adamw", precision="bf16-mixed"),
    ],
    ids=str,
)
def test_in_mixed_precision_the_weights_are_the_same_in_float32(setting: Setting) -> None:
    assert difference(setting) < 1e-5


TWO_RANKS = """
import json
from helpers import regularised
cells = [(kind, clip) for kind in ("l2", "l2_sp", "decoupled") for clip in (None, 0.3)]
settings = [regularised.Setting(kind, "sgd, Nesterov", clip, ranks=2) for kind, clip in cells]
print(json.dumps([regularised.difference(setting) for setting in settings]))
"""


def test_on_two_ranks_it_counts_once() -> None:
    """In a process of its own with one thread: forking the ranks off this one would inherit its threads' locks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RANKS],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) == 6
    assert max(differences) < 1e-12


def test_a_wrong_factor_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half or twice the strength moves the weights far beyond the bounds above."""
    setting = Setting("l2", "sgd")
    right = written_out(setting)
    for factor in (0.5, 2.0):
        for group in STRENGTH:
            monkeypatch.setitem(STRENGTH, group, factor * STRENGTH[group])
        wrong = product(setting)
        assert max(float((wrong[name] - right[name]).abs().max()) for name in right) > 1e-3
        monkeypatch.undo()


def test_the_products_training_is_the_oracles_plain_loop() -> None:
    """Ten steps of the LightningModule, a λ and a rate for each group, against the head written by hand in NumPy."""
    setting = Setting("l2", "sgd")
    named = {name: value.detach().double().numpy() for name, value in Model().named_parameters()}
    # The oracle's W is (inputs, outputs), torch's the other way round.
    parameters = [named["layer.weight"].T, named["layer.bias"], named["fc.weight"].T, named["fc.bias"]]
    rates, l2s = (0.1, 0.1, 0.2, 0.2), (STRENGTH["backbone"], STRENGTH["head"])
    mean, std = (np.array(CONFIG[key], np.float32).astype(np.float64) for key in ("mean", "std"))
    for step, (pixels, labels, *_) in enumerate(Batches(1).parts):
        inputs = ((pixels.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        by_parameter = oracle.gradients(parameters, inputs, np.eye(CLASSES)[labels.numpy()], l2s)
        factor = (step + 1) / STEPS  # one epoch, all of it warm-up
        parameters = [p - rate * factor * by for p, rate, by in zip(parameters, rates, by_parameter, strict=True)]
    trained = product(setting)
    for name, value in zip(("layer.weight", "layer.bias", "fc.weight", "fc.bias"), parameters, strict=True):
        assert trained[name].numpy() == pytest.approx(value.T, abs=1e-10)
        assert not np.allclose(trained[name].numpy(), named[name], atol=1e-3)


def test_where_it_acts() -> None:
    found = {
        (kind, name, clipped): penalty_location(kind, name, clipped=clipped)  # type: ignore[arg-type]
        for kind, name, clipped in itertools.product(KINDS, ("sgd", "adam", "adamw"), (False, True))
        if (kind, name) != ("decoupled", "adam")
    }
    assert {key for key, place in found.items() if place == "optimizer"} == {
        ("l2", "sgd", False),
        ("l2", "adam", False),
        *(("decoupled", name, clipped) for name in ("sgd", "adamw") for clipped in (False, True)),
    }
    assert {key for key, place in found.items() if place == "nowhere"} == {
        ("none", name, clipped) for name in ("sgd", "adam", "adamw") for clipped in (False, True)
    }
    with pytest.raises(ValueError, match="AdamW"):
        penalty_location("decoupled", "adam", clipped=False)


def test_the_optimisers_are_those_that_were_asked_for() -> None:
    groups = [Group("all", 0.1, 0.2, 0.3, {"w": nn.Parameter(torch.ones(2))})]
    for (name, momentum, nesterov), kind in itertools.product(OPTIMIZERS.values(), ("l2", "decoupled")):
        if (name, kind) == ("adam", "decoupled"):
            continue
        made = make_optimizer(groups, name, kind, clipped=False, momentum=momentum, nesterov=nesterov, fused=True)  # type: ignore[arg-type]
        (group,) = made.param_groups
        assert group["lr"] == 0.3
        expected = 0.2 if kind == "decoupled" else 0.0 if name == "adamw" else 0.2  # 2λ and d are equal here
        assert group["weight_decay"] == pytest.approx(expected)
        assert type(made).__name__.lower() == (f"{name}w" if (name, kind) == ("sgd", "decoupled") else name)


def parameters(l2s: dict[str, float]) -> list[Group]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [Group(n, l2, 0.0, 0.1, {n: nn.Parameter(torch.randn(4, 3).double())}) for n, l2 in l2s.items()]


def test_the_penalty_is_the_sum_of_squares_and_its_gradient_2_lambda_w() -> None:
    groups = parameters({"a": 0.03, "b": 0.5, "free": 0.0})
    anchors = {"b": torch.full((4, 3), 0.7, dtype=torch.float64)}
    value = penalty(groups, anchors)
    by_hand = sum(
        group.l2 * (number - (0.7 if name == "b" else 0.0)) ** 2
        for group in groups
        for name, parameter in group.parameters.items()
        for number in parameter.flatten().tolist()
    )
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(by_hand, rel=1e-13)
    torch.autograd.backward(value)
    a, b, free = (group.parameters[group.name] for group in groups)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.allclose(a.grad, 2 * 0.03 * a, rtol=1e-14, atol=0)
    assert torch.allclose(b.grad, 2 * 0.5 * (b - 0.7), rtol=1e-14, atol=0)
    assert free.grad is None


def test_the_penalty_of_half_precision_weights_is_summed_in_single() -> None:
    weights = nn.Parameter(torch.full((3000,), 10.0, dtype=torch.float16))
    assert penalty([Group("all", 0.5, 0.0, 0.1, {"weights": weights})]).item() == pytest.approx(150_000)


def test_no_penalty_is_zero() -> None:
    assert penalty([Group("free", 0.0, 0.0, 0.1, {"w": nn.Parameter(torch.ones(2))})]).item() == 0


@pytest.mark.parametrize(("kind", "momentum"), [("l2", 0.0), ("l2", 0.9), ("decoupled", 0.9)])
def test_the_expected_shrink_is_that_of_a_run_without_data(*, kind: str, momentum: float) -> None:
    """Without a gradient from data the weights shrink by the formula alone, but for the momentum's first steps."""
    group = Group("all", 0.02, 0.3, 0.05, {"w": nn.Parameter(torch.ones(3, dtype=torch.float64))})
    factors = np.linspace(1, 0.2, 300)
    optimizer = make_optimizer([group], "sgd", kind, clipped=False, momentum=momentum, nesterov=False, fused=True)  # type: ignore[arg-type]
    (weight,) = group.parameters.values()
    weight.grad = torch.zeros_like(weight)
    for factor in factors:
        optimizer.param_groups[0]["lr"] = group.lr * factor
        optimizer.step()
    expected = expected_shrink(group, kind, "sgd", factors, momentum)  # type: ignore[arg-type]
    assert expected == pytest.approx(1 - weight[0].item(), rel=0.01 if momentum else 1e-12)
    assert 0.3 < float(expected or 0) < 0.999


def test_the_strength_of_a_shrink_is_the_inverse() -> None:
    factors = np.linspace(0.1, 1, 1000)
    for kind, momentum in (("l2", 0.9), ("l2", 0.0), ("decoupled", 0.9)):
        strength = l2_for_shrink(0.01, kind, 1e-3, factors, momentum)  # type: ignore[arg-type]
        group = Group("all", strength, strength, 1e-3)
        shrink = expected_shrink(group, kind, "sgd", factors, momentum)  # type: ignore[arg-type]
        assert shrink == pytest.approx(0.01, rel=1e-3)


def test_under_adam_no_formula_holds_but_for_its_decoupled_decay() -> None:
    group, factors = Group("all", 1e-4, 1e-4, 1e-4), np.ones(5000)
    assert expected_shrink(group, "l2", "adam", factors, 0.9) is None
    assert expected_shrink(group, "l2", "adamw", factors, 0.9) is None
    # What is known of AdamW at lr 1e-4 and weight decay 1e-4 over 5,000 steps: 0.005 %.
    assert expected_shrink(group, "decoupled", "adamw", factors, 0.9) == pytest.approx(5e-5, rel=1e-3)
