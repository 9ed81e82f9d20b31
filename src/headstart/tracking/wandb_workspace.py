"""The project's workspace in wandb, from code: curves, ledger, leaderboard and mistakes of all runs, side by side."""

import warnings
from pathlib import Path
from typing import Any

from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.paths import DASHBOARD
from headstart.tracking.wandb_run import PROJECT

TITLE = "Headstart"


def save_workspace() -> str | Path:
    """Save the workspace with the user's key.

    Returns:
        Its URL; without a key reports/dashboard.json, which has what would have been sent.

    Raises:
        UserError: the server refuses it or can't be reached.
    """
    import wandb  # noqa: PLC0415  (as everywhere in this package)

    wandb.setup(wandb.Settings(silent=True))
    try:
        known = wandb.login(prompt=False)
        view = workspace(wandb.Api().default_entity or "" if known else "")
        if known:
            return str(view.save().url)
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(f"dashboard: wandb did not take the workspace: {error}") from error
    model = view._to_model()  # noqa: SLF001  (what save() sends; it has no public name)
    sent = {"project": PROJECT, "name": TITLE, "spec": model.spec.model_dump(by_alias=True, exclude_none=True)}
    write_json(DASHBOARD, sent)
    return DASHBOARD


def workspace(entity: str) -> Any:
    """Build the workspace of a user or team."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, of how they are written
        from wandb_workspaces import workspaces  # noqa: PLC0415
        from wandb_workspaces.reports.v2 import interface as reports  # noqa: PLC0415

    def curve(title: str, x: str, **which: Any) -> Any:
        return reports.LinePlot(title=title, x=x, title_x=x, **which)

    def ledger(title: str, column: str) -> Any:
        return curve(title, "epoch", metric_regex=f".*/{column}")

    def table(name: str) -> Any:
        return reports.WeavePanelSummaryTable(table_name=name)

    sections = {
        "Results": [table("leaderboard"), table("confusion"), table("mistakes")],
        "Epochs": [
            curve("Loss", "epoch", y=["train_loss", "val_loss"]),
            curve("Validation accuracy", "epoch", y=["val_accuracy"]),
        ],
        "Ledger": [
            ledger("Norm of each group's weights", "norm"),
            ledger("Distance of each group from its start", "distance"),
            ledger("Share of the weights that the regulariser took so far", "total_shrink"),
            ledger("How far the data moved each group in the epoch", "data_movement"),
        ],
        "Steps": [
            curve("Training loss", "step", y=["step/loss"]),
            curve("Learning rates", "step", metric_regex="step/lr/.*"),
            curve("Norm of the gradient", "step", y=["step/gradient_norm"]),
        ],
    }
    shown = [workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()]
    return workspaces.Workspace(entity=entity, project=PROJECT, name=TITLE, sections=shown)
