"""A project for `headstart repro` whose stages only count: small and fast, but started by the real launch.sh.

Its Python is a script that takes the stages from ``stage.py`` beside it, and all else from the real Python.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from helpers.images import ROOT

PYTHON = """#!/bin/sh
case "$2 ${{3:-}}" in
"headstart doctor") exit 0 ;;
"headstart prepare" | "headstart finetune") exec {python} {stage} "$3" ;;
esac
exec {python} "$@"
"""
STAGE = '''
"""Counts the steps of fake.json; saves and leaves the marker where a signal stops it, as the real stages do."""

import json, os, signal, sys, time
from pathlib import Path
from headstart.core.run_state import write_stopped

stage, rank, world = sys.argv[1], 0, 1
if "SLURM_STEP_ID" in os.environ:
    rank, world = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS"))
settings = json.loads(Path("fake.json").read_text())
came, folder = [], Path(".headstart")
state = folder / f"{stage}-{rank}.steps"


def note(what):
    with (folder / "log").open("a") as log:
        log.write(f"{stage} {rank}/{world} {what}\\n")


for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: came.append(signal.Signals(number).name))
step = int(state.read_text()) if state.exists() else 0
if rank == 0:
    (folder / "start").write_text(os.environ.get("HEADSTART_UNDER_LOCK", ""))
note(f"from {step}")
while step < settings[stage]:
    time.sleep(0.1)
    step += 0 if settings["stuck"] else 1
    if came:
        time.sleep(settings["saving"])
        state.write_text(str(step))
        note(f"saved at {step} after {' '.join(came)}")
        if rank == 0:
            write_stopped(stage, came[0], step, f"{stage} stopped at step {step}")
        sys.exit(rank == 0)
if rank == 0:
    Path(f"{stage}.json").write_text(json.dumps({"steps": step}))
'''
SETTINGS = {"prepare": 0, "finetune": 0, "stuck": False, "saving": 0.0}
"""Steps of 0.1 s, whether they count, and how long saving takes in s."""


def fake_project(folder: Path, **settings: float) -> Path:
    """Make a project of the stages prepare and finetune, with changes to ``SETTINGS``; return its folder."""
    for name in ("slurm", ".dvc/config", ".dvcignore", ".gitignore"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(PYTHON.format(python=sys.executable, stage=binaries / "stage.py"))
    (binaries / "python").chmod(0o755)
    (binaries / "stage.py").write_text(STAGE)
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    params["run"]["cache"] = str(folder / ".headstart" / "cache")
    YAML().dump(params, folder / "params.yaml")
    YAML().dump({"stages": {name: _stage(name) for name in ("prepare", "finetune")}}, folder / "dvc.yaml")
    (folder / "fake.json").write_text(json.dumps({**SETTINGS, **settings}))
    (folder / ".headstart").mkdir()
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=folder, env=environment(folder), check=True)
    return folder


def _stage(name: str) -> dict[str, Any]:
    deps = {"finetune": ["prepare.json"]}.get(name, [])
    params = [{"fake.json": [name]}]
    return {"cmd": f"exec sh slurm/launch.sh {name}", "deps": deps, "params": params, "metrics": [f"{name}.json"]}


def environment(project: Path) -> dict[str, str]:
    """Return the environment in which the project's own Python is used, outside of any Slurm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    who = {f"GIT_{role}_{what}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return kept | who | {"VIRTUAL_ENV": str(project / ".venv"), "PYTHONUNBUFFERED": "1"}


def log(project: Path) -> list[str]:
    """Return what the stages logged: "STAGE RANK/WORLD from STEP" or "... saved at STEP after SIGNALS"."""
    path = project / ".headstart" / "log"
    return path.read_text().splitlines() if path.exists() else []
