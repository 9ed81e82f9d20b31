"""What is chosen by measuring. The measurements are real in one test and invented in the others."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from headstart.assembly import machine
from headstart.assembly.run_folder import RunFolder
from headstart.ground.artifacts import read_json
from headstart.ground.errors import UserError
from pictures import INPUT, params

SIZE = {**INPUT, "input_size": [3, 32, 32]}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return made


def invented(seconds: dict[bool, float], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have steps in fp32 (False) and bf16 (True) take so many seconds; the list tells what was measured."""
    measured: list[bool] = []

    def measure(*_: Any, bf16: bool, **__: Any) -> float:
        measured.append(bf16)
        return seconds[bf16]

    monkeypatch.setattr(machine, "seconds_a_step", measure)
    return measured


def choose(model: nn.Module, folder: Path, rank: int = 0, precision: str = "auto") -> str:
    section = params({"finetune.precision": precision, "run.cache": str(folder / "cache")})
    kept = RunFolder(folder / "run")
    kept.path.mkdir(exist_ok=True)
    return machine.precision_of_run(model, SIZE, section.finetune, section.run, folder=kept, rank=rank)


@pytest.mark.parametrize(("bf16_seconds", "expected"), [(0.5, "bf16-mixed"), (0.95, "32-true"), (2.0, "32-true")])
def test_the_clearly_faster_one_is_chosen_said_and_remembered(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, expected: str
) -> None:
    measured = invented({False: 1.0, True: bf16_seconds}, monkeypatch)
    assert choose(model, tmp_path) == expected
    assert choose(model, tmp_path) == expected
    assert measured == [False, True]
    other: nn.Module = timm.create_model("test_vit", num_classes=4)
    (tmp_path / "run" / "precision.json").unlink()
    choose(other, tmp_path)
    assert measured == [False, True] * 2


def test_a_run_keeps_its_precision_and_is_not_gone_on_with_in_another(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    invented({False: 1.0, True: 0.5}, monkeypatch)
    caplog.set_level(logging.INFO)
    assert choose(model, tmp_path) == "bf16-mixed"
    assert "precision: bf16-mixed; bf16 steps are 2.00 times as fast as fp32" in caplog.text
    assert choose(model, tmp_path, rank=1) == "bf16-mixed"
    invented({False: 1.0, True: 2.0}, monkeypatch)
    monkeypatch.setattr(machine, "_hardware", lambda _: "another machine")
    with pytest.raises(UserError, match=r"began in bf16-mixed on .*auto takes 32-true.*run\.resume: false"):
        choose(model, tmp_path)
    assert choose(model, tmp_path, precision="32-true") == "32-true"


def test_a_rank_waits_for_the_choice_of_the_first(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SECONDS_TO_WAIT", 1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="rank 0 has chosen none"):
        choose(model, tmp_path, rank=1)


def test_the_measurement_is_of_real_steps_and_leaves_the_model_alone(model: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choose(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    (remembered,) = read_json(tmp_path / "cache" / "precision.json").values()
    assert remembered["bf16_speed"] > 0
    small, large = (machine.seconds_a_step(model, SIZE, torch.device("cpu"), size, bf16=False) for size in (2, 256))
    assert large > 2 * small


def compiled(model: nn.Module, steps: int) -> None:
    section = params({"finetune.compile": True})
    machine.compiled(model, SIZE, section.finetune, section.run, steps)


def test_compiling_is_refused_where_it_does_not_pay(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"finetune\.compile: compiling takes \d+ s here and saves \d+ s in 2 steps"):
        compiled(model, steps=2)


def test_compiling_is_refused_where_it_fails(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> float:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(machine, "seconds_a_step", broken)
    with pytest.raises(RuntimeError, match="no C"):  # what fails without the compiler too is no fault of it
        compiled(model, steps=2)
    calls = iter([lambda: 1.0, broken])
    monkeypatch.setattr(machine, "seconds_a_step", lambda *_, **__: next(calls)())
    with pytest.raises(UserError, match=r"fails here \(no C\+\+ compiler\); set it to false"):
        compiled(model, steps=2)
