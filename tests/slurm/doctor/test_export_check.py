"""The trial of ``export.formats`` before the training."""

import errno
from pathlib import Path
from typing import Any

import pytest

from headstart.export import bundle_writer
from headstart.slurm.doctor.batch_checks import Finding
from headstart.slurm.doctor.export_check import check_formats
from helpers.images import params

SMALL = {"backbone.name": "test_resnet", "backbone.image_size": 32}


def trial(*formats: str) -> list[Finding]:
    return [*check_formats(params({**SMALL, "export.formats": list(formats)}))]


def test_a_backbone_that_every_format_takes_has_no_findings(capfd: pytest.CaptureFixture[str]) -> None:
    assert trial("onnx", "onnx_fp16", "onnx_int8", "pt2") == []
    assert trial() == []
    assert capfd.readouterr() == ("", "")


def test_a_format_that_it_cannot_be_converted_to_is_one_line_with_the_first_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        try:
            raise ValueError("Cannot view a tensor\nlines of a graph")
        except ValueError as error:
            raise RuntimeError("This is step 2/3. Create an issue") from error

    monkeypatch.setattr(bundle_writer, "write_onnx", fails)
    after = "leave it out, or choose another backbone.name"
    reasons = ["onnx: this model can't be converted to it: Cannot view a tensor", "onnx_fp16: is made from onnx"]
    expected = [Finding("error", "format-not-exportable", f"export.formats: {reason}: {after}") for reason in reasons]
    assert trial("onnx", "onnx_fp16", "pt2") == expected


def test_a_trial_that_the_disk_has_no_room_for_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_program: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("torch.export.save", full)
    ((severity, name, message),) = trial("pt2")
    assert (severity, name) == ("warning", "formats-untried")
    assert "no space left on device" in message


def test_a_backbone_without_one_linear_head_is_named() -> None:
    (finding,) = check_formats(params({"backbone.name": "deit_tiny_distilled_patch16_224", "export.formats": ["pt2"]}))
    assert finding.name == "backbone-unavailable"
