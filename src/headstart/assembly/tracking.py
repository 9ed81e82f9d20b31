"""The seam to wandb: the only module that imports it, and only when ``run.tracking`` asks for it."""

import secrets
from pathlib import Path
from typing import Any

from headstart.ground.artifacts import FINETUNE, read_json, write_json
from headstart.ground.errors import UserError
from headstart.ground.params import Run

PROJECT = "headstart"


class Tracker:
    """One wandb run of a fine-tuning, gone on with after an interruption."""

    def __init__(self, run: Run, record: Path, config: dict[str, Any]) -> None:
        """Start the run, or go on with it.

        Args:
            run: the section of params.
            record: file that keeps the run's id and how many history rows it has got.
            config: what to show as the run's config.
        """
        self._record = record
        kept: dict[str, Any] = read_json(record) if record.exists() else {"id": secrets.token_hex(4), "rows": 0}
        self.id: str = kept["id"]
        self._rows: int = kept["rows"]
        self._run = _wandb_run(run, self.id, config)
        self._keep()

    def log(self, history: list[dict[str, int | float]]) -> None:
        """Hand over the rows that wandb has not got yet; each is logged at its epoch."""
        for row in history[self._rows :]:
            self._run.log(dict(row), step=int(row["epoch"]))
        self._rows = len(history)
        self._keep()

    def finish(self, summary: dict[str, float]) -> None:
        """Set the run's summary and close it."""
        self._run.summary.update(summary)
        self._run.finish()

    def _keep(self) -> None:
        write_json(self._record, {"id": self.id, "rows": self._rows})


def summarise(run: Run, figures: dict[str, float]) -> None:
    """Add figures to the summary of the wandb run of the fine-tuning in models/finetune, if it has one."""
    record = FINETUNE / "tracking.json"
    if run.tracking == "disabled" or not record.exists():
        return
    tracked = _wandb_run(run, read_json(record)["id"], {})
    tracked.summary.update(figures)
    tracked.finish()


def _wandb_run(run: Run, run_id: str, config: dict[str, Any]) -> Any:
    import wandb  # noqa: PLC0415  (not needed where tracking is disabled)

    assert run.tracking != "disabled"
    try:
        return wandb.init(
            project=PROJECT,
            id=run_id,
            config=config,
            resume="allow",
            mode=run.tracking,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise UserError(f"run.tracking: {error}: `wandb login` first, or use offline or disabled") from error
