import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.core.paths import FEATURES
from headstart.data.dataset import PreparedDataset
from headstart.models.backbone import create_backbone
from headstart.models.head import Head, write_heads
from headstart.models.stem import expected_channels
from headstart.slurm.doctor.batch_checks import Finding, Resources
from headstart.slurm.doctor.machine_checks import (
    Sizes,
    check_device,
    check_disk,
    check_time,
    seconds_per_image,
    sizes_of,
    use_own_gpu,
)
from headstart.stages import finetune
from headstart.training.module import FineTuner
from helpers.bands import give_bands
from helpers.images import params, write_prepared

SMALL = Sizes(weights=10**6, checkpoint=2 * 10**6, width=8)
ADAMW = {
    "finetune.optimizer": "adamw",
    "finetune.l2": {"kind": "decoupled", "backbone": None, "head": None},
    "finetune.decay": {"backbone": 1e-2, "head": 1e-2},
}
Usage = namedtuple("Usage", ["free"])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)


def names(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [finding[:2] for finding in findings]


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({"finetune.momentum": 0.9}, 3),
        ({"finetune.momentum": 0.0, "finetune.nesterov": False}, 2),
        ({"finetune.optimizer": "adam", "finetune.ema": 0.99}, 6),
        ({"finetune.optimizer": "adamw", "finetune.l2.kind": "none"}, 5),
        (ADAMW, 4),
    ],
)
def test_a_checkpoints_size_is_that_of_the_weights_the_moments_the_average_and_the_ledger(
    changes: dict[str, Any], copies: int
) -> None:
    model = create_backbone("bundled", pretrained=False, image_size=None, args={})
    weights = sum(each.nbytes for each in model.parameters())
    assert sizes_of(params(changes)) == Sizes(weights, copies * weights, int(model.num_features))  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "bands"), [("auto", 3), ("rgb", 3), (13, 13)])
def test_the_backbone_is_of_the_bands_that_params_name(channels: str | int, bands: int) -> None:
    model = create_backbone("bundled", pretrained=False, image_size=None, args={}, in_chans=bands)
    assert sizes_of(params({"prepare.channels": channels})).weights == sum(each.nbytes for each in model.parameters())
    assert expected_channels(params({"prepare.channels": "auto", "backbone.rgb": [4, 3, 2]})) == 4


def test_the_bands_that_were_found_decide_where_params_leave_them_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared()
    give_bands(PreparedDataset.open(), "uint16", 5)
    of_params = {
        channels: expected_channels(params({"prepare.channels": channels})) for channels in ("auto", "rgb", 13)
    }
    assert of_params == {"auto": 5, "rgb": 3, 13: 13}


@pytest.mark.parametrize("changes", [{}, {"finetune.optimizer": "adam", "finetune.ema": 0.9}, ADAMW])
def test_a_checkpoint_that_is_saved_within_an_epoch_has_that_size(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch, since Adam has no moments before its first step."""
    given = params({"backbone.name": "test_resnet", "backbone.pretrained": False, "run.cache": "cache", **changes})
    write_prepared()
    write_heads([Head(np.zeros((4, 96), np.float32), np.zeros(4, np.float32), 1e-3)], 0)
    step = FineTuner.training_step

    def stopped(self: FineTuner, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", stopped)
    with pytest.raises(SystemExit):
        finetune.run(given.declared(finetune.PARAMS))
    (last,) = Path("cache").glob("runs/*/last.ckpt")
    model = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4)
    weights = sum(each.nbytes for each in model.parameters())
    sizes = sizes_of(given)
    assert last.stat().st_size / weights == pytest.approx(sizes.checkpoint / sizes.weights, rel=0.05)


def test_a_disk_that_is_too_full_is_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    given, rows = params({"run.cache": "cache"}), 31 * 8 * 4
    write_prepared()
    need = 2 * rows + 4 * SMALL.checkpoint + 2 * SMALL.weights  # on one disk here
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(need))
    assert names(check_disk(given, {}, SMALL)) == [("info", "save")]
    assert list(Path("cache").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(need - 1))
    (finding,) = check_disk(given, {}, SMALL)
    assert finding[:2] == ("error", "disk-full")
    assert "4 checkpoints of 0.00 GB" in finding.message
    assert not FEATURES.exists()


def test_a_signal_that_leaves_no_time_to_save_is_an_error() -> None:
    given = params({"run.cache": "cache"})
    assert names(check_disk(given, {"signal": "B:USR1@180"}, SMALL)) == [("info", "save")]
    assert names(check_disk(given, {"signal": "B:USR1@5"}, SMALL)) == [("info", "save"), ("error", "signal-too-late")]


@pytest.mark.parametrize(("gpus", "own"), [(4, [3]), (2, [1]), (1, [0]), (0, [])])
def test_each_task_computes_on_a_gpu_of_its_own(gpus: int, own: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("SLURM_LOCALID", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    use_own_gpu()
    assert chosen == own


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
def test_gpus_that_torch_can_not_use_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = params({"run.accelerator": "auto"})
    assert names(check_device(automatic)) == []
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert names(check_device(automatic)) == [("error", "torch-without-gpu")]
    assert names(check_device(params())) == []


def test_a_precision_that_the_device_lacks_is_an_error() -> None:
    assert names(check_device(params({"finetune.precision": "16-mixed"}))) == [("error", "device-unsupported")]


def test_the_time_limit_is_compared_with_all_epochs() -> None:
    given, two = params({"finetune.epochs": 10}), Resources(1, 2, None)
    assert list(check_time(given, {"time": "1"}, two, 1.0)) == []  # the number of images is not known yet
    write_prepared()
    # 10 epochs of 12 images on 2 tasks take 60 s.
    assert names(check_time(given, {"time": "1:00"}, two, 1.0)) == [("info", "time")]
    assert names(check_time(given, {"time": "0:59"}, two, 1.0)) == [("warning", "time-limit-short")]
    assert names(check_time(given, {"time": "0:59", "no-requeue": ""}, two, 1.0)) == [("warning", "time-limit-short")]
    (finding,) = check_time(given, {"time": "0:25", "requeue": ""}, two, 1.0)
    assert finding.message.endswith("in 3 starts of the job")


def test_a_step_is_measured() -> None:
    assert 0 < seconds_per_image(params()) < 10
