"""`headstart dashboard` sends a workspace whose panels show what the stages track; without a key it writes it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from headstart.core.io import read_json
from headstart.core.paths import DASHBOARD
from headstart.training.history import curve_rows
from headstart.training.regularization.ledger import COLUMNS
from headstart.training.regularization.param_groups import Group
from helpers.command import headstart
from helpers.wandb_server import ENTITY, wandb_server, without_wandb


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    without_wandb(tmp_path, monkeypatch)
    yield
    wandb.teardown()


def shown(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def tracked() -> dict[str, str]:
    """Return the columns of the rows that a fine-tuning logs, each with its axis."""
    (step,) = curve_rows(1, 0, [0.5], [1.0], groups=[Group("head", 0.0, 0.0, 0.1)], lr_factors=[1.0])
    epoch = ["train_loss", "val_loss", "val_refined_loss", "val_accuracy", *(f"head/{name}" for name in COLUMNS[2:])]
    return {name: "step" for name in step if name not in ("epoch", "step")} | dict.fromkeys(epoch, "epoch")


def test_without_a_key_it_is_written_and_the_message_says_how_to_send_it() -> None:
    assert headstart("dashboard").stdout == (
        f"{DASHBOARD}: not sent, since wandb has no key here: `wandb login`, then `headstart dashboard` again\n"
    )
    panels = shown(read_json(DASHBOARD)["spec"])
    tables = [str(panel) for panel in panels if panel["viewType"] == "Weave"]
    for name in ("leaderboard", "confusion", "mistakes"):
        assert sum(f"'{name}'" in table or f'"{name}"' in table for table in tables) == 1
    columns = tracked()
    curves = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert len(curves) == len(panels) - len(tables)
    plotted = set()
    for config in curves:
        pattern = config.get("metricRegex")
        here = {name for name in columns if re.fullmatch(pattern, name)} if pattern else set(config["metrics"])
        assert here, config["chartTitle"]
        assert {columns[name] for name in here} == {config["xAxis"]}
        plotted |= here
    ledger = {f"head/{name}" for name in ("norm", "distance", "total_shrink", "data_movement")}
    assert plotted == {name for name in columns if not name.startswith("head/")} | ledger


def test_with_a_key_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        answer = headstart("dashboard")
        assert answer.exit_code == 0, answer.stderr
        (saved,) = server.workspaces.values()
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == (ENTITY, "headstart", "Headstart")
    assert len(shown(saved["spec"])) == 12
    assert f"/{ENTITY}/headstart" in answer.stdout
    assert not DASHBOARD.exists()
