"""What ``auto`` in ``finetune.augment`` stands for, from the verdicts of ``probe.augmentation``."""

from collections.abc import Mapping
from typing import Any

from headstart.config.choice import Choice
from headstart.config.finetune import AugmentConfig, ResolvedAugmentConfig
from headstart.core.io import read_json
from headstart.core.paths import AUGMENTATION

PROBABILITY = 0.5
"""Of a change that keeps the label: changed and unchanged images are equally frequent."""


def read_evidence() -> dict[str, Any]:
    """Read what ``judge_changes`` returned; there are no verdicts if an earlier version fitted the probe."""
    if not AUGMENTATION.exists():
        return {"reason": "models/probe is of an earlier version: `dvc repro -f features` lets it judge", "changes": {}}
    evidence: dict[str, Any] = read_json(AUGMENTATION)
    return evidence


def resolve_augment(augment: AugmentConfig, evidence: Mapping[str, Any]) -> tuple[ResolvedAugmentConfig, list[Choice]]:
    """Replace each ``auto`` by a value: 0.5 where the change keeps the label, else 0; without evidence it is 0.

    Returns:
        The section without ``auto``, and what was chosen, in the section's order.
    """
    values, choices = augment.model_dump(), []
    for name in [name for name, value in values.items() if value == "auto"]:
        verdict = evidence["changes"].get(name) or {"kept": False, "reason": evidence["reason"] or "it was not tried"}
        values[name] = PROBABILITY if verdict["kept"] else 0.0
        choices.append(Choice(f"finetune.augment.{name}", values[name], verdict["reason"]))
    return ResolvedAugmentConfig.model_validate(values), choices
