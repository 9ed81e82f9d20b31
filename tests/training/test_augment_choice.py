"""What ``auto`` becomes: the probe's verdict, or off."""

from pathlib import Path

import pytest

from headstart.config.finetune import AugmentConfig
from headstart.core.io import write_json
from headstart.core.paths import AUGMENTATION
from headstart.training.augment_choice import read_evidence, resolve_augment

EVIDENCE = {
    "images": 256,
    "reason": None,
    "changes": {"hflip": {"kept": True, "reason": "no harm"}, "vflip": {"kept": False, "reason": "harm"}},
}


def test_auto_follows_the_verdict_and_has_its_reason() -> None:
    resolved, choices = resolve_augment(AugmentConfig(), EVIDENCE)
    assert (resolved.hflip, resolved.vflip, resolved.quarter_turn) == (0.5, 0.0, 0.0)
    assert choices == [
        ("finetune.augment.hflip", 0.5, "no harm"),
        ("finetune.augment.vflip", 0.0, "harm"),
        ("finetune.augment.quarter_turn", 0.0, "it was not tried"),
    ]
    assert resolved.model_dump(exclude={"hflip", "vflip", "quarter_turn"}) == AugmentConfig().model_dump(
        exclude={"hflip", "vflip", "quarter_turn"}
    )


def test_a_value_of_the_file_wins() -> None:
    given = AugmentConfig(hflip=0.0, vflip=1.0, quarter_turn=0.25)
    resolved, choices = resolve_augment(given, EVIDENCE)
    assert choices == []
    assert resolved.model_dump() == given.model_dump()


def test_without_evidence_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for reason in ("models/probe is of an earlier version", "5 validation images are too few"):
        resolved, choices = resolve_augment(AugmentConfig(), read_evidence())
        assert (resolved.hflip, resolved.vflip, resolved.quarter_turn) == (0.0, 0.0, 0.0)
        assert all(choice.reason.startswith(reason) for choice in choices)
        AUGMENTATION.parent.mkdir(parents=True, exist_ok=True)
        write_json(AUGMENTATION, {"images": 5, "reason": "5 validation images are too few", "changes": {}})
