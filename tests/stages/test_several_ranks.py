"""Two processes give what one gives, started by torchrun or by ``run.devices``; what happens to one ends both."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor, nn

from headstart.core import paths
from headstart.core.io import read_json, read_table, write_json
from headstart.core.paths import FEATURES, FINETUNE, REPORTS
from headstart.core.run_state import read_stopped
from headstart.data.dataset import PreparedDataset
from headstart.probe.outputs import baseline_file
from headstart.stages import evaluate, features, finetune, prepare, probe
from headstart.training.refinement import TEMPERATURES
from helpers.images import CLASSES, params, write_finetune, write_prepared, write_probe, write_zero_head
from helpers.reported import write_reported

ROUNDING = 2e-6
AS_RANK = str(Path(__file__).parents[1] / "helpers" / "as_rank.py")
DEVICES = [sys.executable, AS_RANK]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", AS_RANK]
STEPS = 8
"""Of an epoch."""
TESTED = 13
"""Images of the test split."""
SMALL = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "features.batch_size": 4,
    "evaluate.batch_size": 4,
    "finetune.recipe": "gradual",
    "finetune.epochs": 7,
    "finetune.batch_size": 8,
    "finetune.accumulate": 2,
    "finetune.batch_norm": "frozen",
    "finetune.clip": 1.0,
    "finetune.lr": {"backbone": 0.01, "head": 0.01},
    "finetune.augment.hflip": 0.5,
    "finetune.augment.mixup": 0.4,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sizes that don't divide; as many threads as each of two processes has, since last bits depend on them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_prepared({"train": 67, "validation": 21, "test": TESTED})
    write_probe(PreparedDataset.open(), write_untrained())
    yield
    torch.set_num_threads(threads)


def write_untrained() -> nn.Module:
    """What evaluate takes for fine-tuned, with all that its page is made from."""
    model, path = write_finetune(), REPORTS / "finetune.json"
    report = read_json(path)
    write_reported(CLASSES, TESTED, PreparedDataset.open())
    write_json(path, read_json(path) | report)
    return model


def run(stage: Any, changes: dict[str, Any] | None = None) -> None:
    stage.run(params({**SMALL, "run.cache": "one", **(changes or {})}).declared(stage.PARAMS))


def program(command: list[str], changes: dict[str, Any] | None = None) -> tuple[int, str]:
    """Run stages in two processes; give the exit code and what they print."""
    YAML().dump(params({**SMALL, "run.cache": "two", **(changes or {})}).model_dump(), Path("params.yaml"))
    with Path("output.txt").open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=output, timeout=120, check=False)
    return done.returncode, Path("output.txt").read_text()


def figures() -> list[dict[str, float]]:
    """The history and the ledger, times left out."""
    rows = read_table(paths.HISTORY) + read_table(paths.LEDGER)
    return [
        {name: float(value or 0) for name, value in row.items() if name != "group" and "seconds" not in name}
        for row in rows
    ]


def weights() -> dict[str, Tensor]:
    return load_file(FINETUNE / "model.safetensors")


def assert_equal_up_to_rounding(expected: dict[str, Tensor], figures_expected: list[dict[str, float]]) -> None:
    for name, value in weights().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=ROUNDING * float(value.abs().max()), msg=name)
    for found, row in zip(figures(), figures_expected, strict=True):
        for name, figure in row.items():
            # Logits over a temperature below 1 have their rounding enlarged.
            enlarged = 1 / min(TEMPERATURES) if name == "val_refined_loss" else 1
            assert found.pop(name) == pytest.approx(figure, rel=ROUNDING * enlarged), name
        assert not found


def test_two_processes_give_what_one_does() -> None:
    """Of features and predictions the very bytes; of a fine-tuning weights, history and ledger up to rounding."""
    for stage in (features, evaluate):
        run(stage)
    bytes_of = {path: path.read_bytes() for path in (FEATURES / "features.npy", paths.PREDICTIONS)}
    run(finetune)
    expected = weights(), figures()
    write_untrained()
    code, output = program([*TORCHRUN, "nothing", "features", "evaluate", "finetune"])
    assert code == 0, output
    for path, content in bytes_of.items():
        assert path.read_bytes() == content
    assert_equal_up_to_rounding(*expected)


TARGETS: dict[str, dict[str, Any]] = {
    "class": {"finetune.sampling": "balanced", "finetune.early_stopping.monitor": "val_balanced_accuracy"},
    "labels": {"finetune.sampling": "sqrt", "finetune.early_stopping.monitor": "val_mean_ap"},
    "number": {"finetune.sampling": "balanced", "finetune.loss": "quantile"},
    "grade": {"finetune.logit_adjustment": 1.0, "finetune.class_weights": "balanced"},
}


def test_two_processes_train_every_target_as_one_does() -> None:
    """Weights, figures and ledger up to rounding; of grades the rows stay equal to the bit."""
    changes = {"finetune.recipe": "lp_ft", "finetune.epochs": 2}
    expected = {}
    for kind, own in TARGETS.items():
        Path(kind).mkdir()
        with contextlib.chdir(kind):
            write_zero_head(write_prepared({"train": 67, "validation": 21, "test": TESTED}, kind=kind))
            run(finetune, {**changes, **own})
            expected[kind] = weights(), figures()
            YAML().dump(params({**SMALL, **changes, **own, "run.cache": "two"}).model_dump(), Path("params.yaml"))
    code, output = program([*TORCHRUN, "nothing", *(f"{kind}/finetune" for kind in TARGETS)])
    assert code == 0, output
    for kind, alone in expected.items():
        with contextlib.chdir(kind):
            assert_equal_up_to_rounding(*alone)
            rows = weights()["fc.weight"]
        assert kind != "grade" or (rows == rows[0]).all()


def test_two_processes_prepare_what_one_does() -> None:
    """In classes of four images and in groups that share one, splits differ from those that were foreseen."""
    Path("images").mkdir()
    lines, generator = ["path,label,group"], np.random.default_rng(0)
    for i in range(200):
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(f"images/{i:03d}.png")
        lines.append(f"{i:03d}.png,c{i // 4:02d},")
    for i in range(0, 40, 4):
        Path(f"images/{i:03d}again.png").write_bytes(Path(f"images/{i:03d}.png").read_bytes())
        lines.append(f"{i:03d}again.png,c{i // 4:02d},group{i}")
    Path("images/list.csv").write_text("\n".join(lines))
    changes = {"prepare.source": "csv:list.csv", "prepare.path": "images", "backbone.image_size": 16}
    shutil.rmtree(paths.PREPARED)
    run(prepare, changes)
    expected = {path.name: path.read_bytes() for path in paths.PREPARED.iterdir()}
    assert len([name for name in expected if name.startswith("pixels")]) == 4
    assert read_json(paths.report_of("prepare"))["decoded_again"]
    shutil.rmtree(paths.PREPARED)
    code, output = program([*TORCHRUN, "nothing", "prepare"], changes)
    assert code == 0, output
    assert {path.name: path.read_bytes() for path in paths.PREPARED.iterdir()} == expected
    assert {len(list(path.iterdir())) for path in paths.CLAIMS.iterdir()} <= {1, 2, 3, 4}


def test_an_image_that_no_rank_can_read_ends_both_with_one_line() -> None:
    Path("images/a").mkdir(parents=True)
    Path("images/b").mkdir()
    for i in range(200):
        Image.new("RGB", (20, 20), (i, i, i)).save(f"images/{'ab'[i % 2]}/{i:03d}.png")
    Path("images/b/199.png").write_bytes(b"?")
    changes = {"prepare.source": "imagefolder", "prepare.path": "images", "backbone.image_size": 16}
    code, output = program([*DEVICES, "nothing", "prepare"], changes | {"run.devices": 2})
    assert code, output
    assert "prepare: 1 bad images:" in output
    assert "b/199.png" in output


def objectives() -> tuple[NDArray[np.float64], float]:
    """The objective at each λ, and at the chosen one, which is fitted to the solver's own tolerance."""
    path, report = read_table(paths.L2_PATH), read_json(paths.report_of("probe"))
    values = [float(row["train_loss"]) + float(row["l2"]) * float(row["squared_norm"]) for row in path]
    chosen = [float(row["l2"]) for row in path].index(report["l2"])
    return np.array(values), values[chosen]


@pytest.mark.parametrize("kind", ["class", "labels"])
def test_the_probe_of_two_processes_is_as_near_to_its_minimum_as_of_one(kind: str) -> None:
    """Each has a part of the rows; the heads' last bits may differ, their objectives by the tolerance.

    Some labels are unknown: ridge has a decomposition for each of them.
    """
    if kind != "class":
        shutil.rmtree(paths.PREPARED)
        write_prepared({"train": 67, "validation": 21, "test": TESTED}, kind=kind)
    run(features)
    changes = {"probe.heads": ["ridge"], "probe.l2": [1.0, 0.1, 0.03, 0.01]}
    run(probe, changes)
    (path, chosen), ridge = objectives(), np.load(paths.BASELINES / baseline_file("ridge", "test"))
    code, output = program([*TORCHRUN, "nothing", "probe"], changes)
    assert code == 0, output
    assert objectives()[0] == pytest.approx(path, rel=probe.PATH_TOLERANCE)
    assert objectives()[1] == pytest.approx(chosen, rel=1e-7)  # heads are stored in float32
    again = np.load(paths.BASELINES / baseline_file("ridge", "test"))
    np.testing.assert_allclose(again, ridge, rtol=1e-4, atol=1e-5)


def test_a_signal_to_one_of_two_stops_both_at_one_step_and_one_goes_on() -> None:
    run(finetune)
    expected = weights(), figures()
    code, output = program([*DEVICES, "signal", "finetune"], {"run.devices": 2})
    assert code == 128 + signal.SIGUSR1, output
    marker = read_stopped()
    assert marker is not None
    # Rank 1 tells of it at its step's end, and both read it at the next one's.
    assert (marker["reason"], marker["progress"]) == ("SIGUSR1", STEPS + 2)
    run(finetune, {"run.cache": "two"})
    assert_equal_up_to_rounding(*expected)


def test_when_one_of_two_is_killed_the_other_ends() -> None:
    code, output = program([*DEVICES, "kill", "finetune"], {"run.devices": 2})
    assert code, output
    # Lightning looks after the processes that it started, and says it in its own words where it is the first.
    assert re.search(f"rank 1 on {socket.gethostname()}: no sign of life|rank: 1. Child process", output), output


def test_an_error_in_one_of_two_ends_both_and_names_host_and_rank() -> None:
    code, output = program([*DEVICES, "raise", "finetune"], {"run.devices": 2})
    assert code, output
    assert f"rank 1 on {socket.gethostname()}: RuntimeError: out of luck" in output
