"""What is chosen by measuring. The measurements are real in one test and invented in the others."""

import copy
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.utils import counters

from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.training import autotune
from headstart.training.checkpoint import RunDir
from helpers.images import INPUT, params

SIZE = {**INPUT, "input_size": [3, 32, 32]}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return made


def invented(plain: float, bf16: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make steps in fp32 and bf16 take so many seconds; the list grows with every measurement."""
    measured: list[int] = []

    def measure(*_: Any, **__: Any) -> tuple[float, float]:
        measured.append(1)
        return plain, bf16

    monkeypatch.setattr(autotune, "seconds_a_step", measure)
    monkeypatch.setattr(autotune, "_cpu_lines", lambda *_: ["flags : fpu avx512_bf16"])
    return measured


def choose(model: nn.Module, folder: Path, precision: str = "auto") -> str:
    section = params({"finetune.precision": precision, "run.cache": str(folder / "cache")})
    kept = RunDir(folder / "run")
    kept.path.mkdir(exist_ok=True)
    return autotune.precision_of_run(model, SIZE, section.finetune, section.run, kept)


def test_a_short_training_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = params({"finetune.precision": "auto", "run.cache": str(tmp_path / "cache")})
    kept = RunDir(tmp_path)
    caplog.set_level(logging.INFO)
    steps = autotune.WORTH_MEASURING - 1
    model = nn.Identity()  # measuring it would fail
    assert autotune.precision_of_run(model, SIZE, section.finetune, section.run, kept, steps=steps) == "32-true"
    assert f"{steps} steps are too few to measure" in caplog.text
    assert read_json(kept.precision)["precision"] == "32-true"


@pytest.mark.parametrize(("bf16_seconds", "expected"), [(0.5, "bf16-mixed"), (0.95, "32-true"), (2.0, "32-true")])
def test_the_clearly_faster_one_is_chosen_said_and_remembered(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, expected: str
) -> None:
    measured = invented(1.0, bf16_seconds, monkeypatch)
    assert choose(model, tmp_path) == expected
    assert choose(model, tmp_path) == expected
    assert len(measured) == 1
    other: nn.Module = timm.create_model("test_vit", num_classes=4)
    (tmp_path / "run" / "precision.json").unlink()
    choose(other, tmp_path)
    assert len(measured) == 2


def test_a_run_keeps_the_precision_in_which_it_began(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    invented(1.0, 0.5, monkeypatch)
    assert choose(model, tmp_path) == "bf16-mixed"
    assert "precision: bf16-mixed; bf16 steps are 2.00 times as fast as fp32" in caplog.text
    invented(1.0, 2.0, monkeypatch)
    monkeypatch.setattr(autotune, "_hardware", lambda _: "another machine")
    assert choose(model, tmp_path) == "bf16-mixed"
    assert "precision: bf16-mixed, in which this fine-tuning began on" in caplog.text
    assert choose(model, tmp_path, precision="32-true") == "32-true"
    monkeypatch.setattr(autotune, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(UserError, match="this GPU has no bfloat16"):
        choose(model, tmp_path)


def test_the_measurement_is_of_real_steps_and_leaves_the_model_alone(model: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choose(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    (remembered,) = read_json(tmp_path / "cache" / "precision.json").values()
    assert (remembered["bf16_speed"] > autotune.CLEARLY) == (remembered["precision"] == "bf16-mixed")
    small, large = (
        autotune.seconds_a_step(copy.deepcopy(model), SIZE, torch.device("cpu"), size, [False])[0] for size in (2, 256)
    )
    assert large > 2 * small


def test_images_of_other_channels_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "TRIAL_S", 1e6)
    config = {**SIZE, "input_size": [5, 32, 32], "mean": [0.5] * 5, "std": [0.25] * 5}
    made, cpu = timm.create_model("test_resnet", num_classes=4, in_chans=5), torch.device("cpu")
    assert autotune.affordable_size(copy.deepcopy(made), config, cpu, 2, [False]) == 2
    assert autotune.seconds_a_step(made, config, cpu, 2, [False])[0] > 0


def test_a_hopeless_precision_is_tried_twice_and_too_large_a_batch_is_halved(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, bool]] = []

    def step(_: nn.Module, __: nn.Module, pixels: torch.Tensor, *, bf16: bool) -> float:
        tried.append((len(pixels), bf16))
        if len(pixels) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 5.0 if bf16 else 1.0

    monkeypatch.setattr(autotune, "_seconds", step)
    assert autotune.seconds_a_step(model, SIZE, torch.device("cpu"), 32, (False, True)) == [1.0, 5.0]
    assert tried == [(32, False), (16, False), *[(8, False), (8, True)] * 2]


@pytest.mark.parametrize(
    ("line", "has_bf16"),
    [
        ("flags\t\t: fpu avx2 f16c", False),  # as up to Ice Lake and Zen 3
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd svebf16 i8mm bf16", True),  # ARM's Neoverse V1
        ("Features\t: fp asimd asimddp", False),
        ("arm", False),  # macOS, which has no such file
    ],
)
def test_steps_are_measured_only_where_the_processor_has_bf16(
    line: str, *, has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    caplog.set_level(logging.INFO)
    measured = invented(1.0, 0.5, monkeypatch)
    monkeypatch.setattr(autotune, "_cpu_lines", lambda *_: [line])
    assert choose(model, tmp_path) == ("bf16-mixed" if has_bf16 else "32-true")
    assert len(measured) == has_bf16
    said = "precision: measuring steps in fp32 and bf16, for at most 4 s" if has_bf16 else "does not compute in bf16"
    assert said in caplog.messages[0]


class Slow(nn.Module):
    """Layers that take so many seconds for each image, by a clock that only they move."""

    def __init__(self, clock: list[float], seconds: float, layers: int) -> None:
        super().__init__()
        self.weight, self._clock, self._seconds = nn.Parameter(torch.zeros(1)), clock, seconds
        self.layers = nn.Sequential(*(nn.Identity() for _ in range(layers)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            layer(pixels)
            self._clock[0] += self._seconds * len(pixels)
        return self.weight * pixels.mean(dim=(2, 3))

    def __deepcopy__(self, _: Any) -> "Slow":
        return self


@pytest.mark.parametrize("seconds", [1e-6, 0.01, 0.1, 0.5, 2, 40])
def test_a_measurement_ends_after_ten_seconds_and_leaves_a_step_that_takes_too_long(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(autotune, "_cpu_lines", lambda *_: ["flags : avx512_bf16"])
    assert choose(Slow(clock, seconds / 20, 20), tmp_path) == "32-true"
    assert clock[0] <= 10


def check(model: nn.Module, steps: int) -> None:
    section = params({"finetune.compile": True})
    autotune.check_compiling(model, SIZE, section.finetune, section.run, steps)


def test_compiling_is_refused_where_it_does_not_pay() -> None:
    """With the smallest model that is worth a graph: a larger one takes a minute to compile."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    counters.clear()
    with pytest.raises(UserError, match=r"finetune\.compile: compiling takes \d+ s here and saves \d+ s in 2 steps"):
        check(model, steps=2)
    assert counters["frames"]["ok"] > 0  # it was really compiled


def test_compiling_is_taken_where_it_pays_and_refused_where_it_fails(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[float]:
        raise RuntimeError("no C++ compiler\nand much more")

    calls = iter([lambda *_: [1.0], lambda *_: [0.5], lambda *_: [1.0], broken])
    monkeypatch.setattr(autotune, "seconds_a_step", lambda *_, **__: next(calls)())
    check(model, steps=100)
    with pytest.raises(UserError, match=r"fails here \(no C\+\+ compiler\); set it to false"):
        check(model, steps=100)
