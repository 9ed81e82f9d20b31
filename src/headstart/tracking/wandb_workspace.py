"""The project's workspace in wandb: curves, ledger, leaderboard and mistakes of all runs, side by side."""

import warnings
from pathlib import Path
from typing import Any

from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.paths import DASHBOARD
from headstart.tracking.wandb_run import PROJECT

TITLE = "Headstart"
CURVES: dict[tuple[str, str], dict[str, Any]] = {
    ("Epochs", "epoch"): {
        "Loss": {"y": ["train_loss", "val_loss", "val_refined_loss"]},
        "Validation accuracy": {"y": ["val_accuracy"]},
    },
    ("Ledger", "epoch"): {
        "Norm of each group's weights": {"metric_regex": ".*/norm"},
        "Distance of each group from its start": {"metric_regex": ".*/distance"},
        "Fraction of the weights removed by the regulariser so far": {"metric_regex": ".*/total_shrink"},
        "Distance by which the data moved each group in the epoch": {"metric_regex": ".*/data_movement"},
    },
    ("Steps", "step"): {
        "Training loss": {"y": ["step/loss"]},
        "Learning rates": {"metric_regex": "step/lr/.*"},
        "Norm of the gradient": {"y": ["step/gradient_norm"]},
    },
}
"""Plots by their section and its axis."""


def save_workspace() -> str | Path:
    """Save the workspace with the user's key.

    Returns:
        Its URL; without a key the path of reports/dashboard.json, which contains what would have been sent.

    Raises:
        UserError: the server refuses it or can't be reached.
    """
    import wandb  # noqa: PLC0415

    wandb.setup(wandb.Settings(silent=True))
    try:
        has_key = wandb.login(prompt=False)
        workspace = build_workspace(wandb.Api().default_entity or "" if has_key else "")
        if has_key:
            return str(workspace.save().url)
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(f"dashboard: wandb did not take the workspace: {error}") from error
    # save() sends this; wandb_workspaces has no public name for it (0.4.13).
    view = workspace._to_model()  # noqa: SLF001
    spec = view.spec.model_dump(by_alias=True, exclude_none=True)
    write_json(DASHBOARD, {"project": PROJECT, "name": TITLE, "spec": spec})
    return DASHBOARD


def build_workspace(entity: str) -> Any:
    """Build the workspace of a user or team."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, of how they are written
        from wandb_workspaces import workspaces  # noqa: PLC0415
        from wandb_workspaces.reports.v2 import interface as reports  # noqa: PLC0415

    tables = (reports.WeavePanelSummaryTable(table_name=name) for name in ("leaderboard", "confusion", "mistakes"))
    sections = [workspaces.Section(name="Results", panels=[*tables], is_open=True)]
    for (name, axis), metrics in CURVES.items():
        plots = (reports.LinePlot(title=title, x=axis, title_x=axis, **which) for title, which in metrics.items())
        sections.append(workspaces.Section(name=name, panels=[*plots], is_open=True))
    return workspaces.Workspace(entity=entity, project=PROJECT, name=TITLE, sections=sections)
