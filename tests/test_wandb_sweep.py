"""sweep.yaml: the command that wandb's agent makes of it starts the same pipeline with the trial's keys."""

import os
import subprocess
from pathlib import Path

from ruamel.yaml import YAML
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from helpers.images import ROOT, params

SWEEP = YAML(typ="safe").load(ROOT / "sweep.yaml")
TRIAL = {"finetune.lr.backbone": 0.02, "finetune.lr.head": 0.05, "finetune.l2.head": 0.001}


def test_its_keys_are_those_of_the_params_and_its_metric_is_in_the_summary() -> None:
    assert SWEEP["parameters"].keys() == TRIAL.keys()
    assert params(TRIAL).finetune.lr["head"] == 0.05
    assert SWEEP["metric"] == {"name": "finetune/val_loss", "goal": "minimize"}


def test_a_trial_is_one_repro_with_each_key_set(tmp_path: Path) -> None:
    """As wandb's agent fills the command in; `headstart` is one that prints what it is given."""
    told = tmp_path / "headstart"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    values = create_sweep_command_args({"args": {name: {"value": value} for name, value in TRIAL.items()}})
    command: list[str] = []
    for part in create_sweep_command(SWEEP["command"]):
        command += values["args_no_hyphens"] if part == "${args_no_hyphens}" else [part]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    expected = [word for name, value in TRIAL.items() for word in ("-S", f"{name}={value}")]
    assert printed.splitlines() == ["repro", *expected]
