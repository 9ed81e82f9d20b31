"""The seam to wandb: one run a fine-tuning, in which every row of its history stands once, whatever killed it.

A row is handed over when a saved state contains it, under a number of its own: wandb's step. What wandb has is the
truth, not what this side remembers: a start asks the server, or reads the offline files, and goes on behind the last
row there.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.ground.artifacts import FINETUNE, read_json, write_json
from headstart.ground.errors import UserError
from headstart.ground.params import Run

PROJECT = "headstart"
RECORD = FINETUNE / "tracking.json"
SECONDS_TO_START, SECONDS_TO_FINISH = 60, 120
SECONDS_TO_FLUSH = 5
"""How long a killed program's wandb process may take to write what it had got."""

Row = dict[str, int | float]

logger = logging.getLogger(__name__)


class Tracker:
    """One wandb run of a fine-tuning, gone on with after an interruption; what goes wrong in it never ends a training.

    Attributes:
        id: wandb's name of the run; in a sweep the agent's.
    """

    def __init__(self, run: Run, record: Path, config: dict[str, Any]) -> None:
        """Start the run, or go on with it.

        Args:
            run: the section of params.
            record: file that keeps the run's id and how many rows it has got.
            config: what to show as the run's config.

        Raises:
            UserError: wandb refuses: no key, or a wrong one.
        """
        self._record = record
        kept: dict[str, Any] = read_json(record) if record.exists() else {"id": secrets.token_hex(4), "rows": 0}
        self.id: str = os.environ.get("WANDB_RUN_ID") or kept["id"]
        known = kept["rows"] if self.id == kept["id"] else 0
        # Before wandb begins another file of this run.
        on_disk = _rows_on_disk(self.id, known)
        self._run = _start(run, self.id, job_type="finetune", config=config)
        if self._run.offline:
            self._rows = known if on_disk is None else on_disk
        else:
            self._rows = self._run.step
        for pattern, axis in (("*", "epoch"), ("step/*", "step")):
            self._run.define_metric(pattern, step_metric=axis, summary="none")
        self._keep()

    def log(self, history: Sequence[Row], curve: Sequence[Row]) -> None:
        """Hand over the rows that wandb has not got yet; the others are those of before.

        Args:
            history: a row an epoch, each of which a saved state contains.
            curve: rows of steps, each with its ``epoch``; those of other epochs wait.
        """
        if self._run is None:
            return
        rows = interleaved(history, curve)
        try:
            for number in range(self._rows, len(rows)):
                self._run.log(dict(rows[number]), step=number, commit=True)
        except _failures() as error:
            logger.warning("wandb gets no more of this run: %s", error)
            self._run = None
            return
        self._rows = max(self._rows, len(rows))
        self._keep()

    def finish(self, summary: dict[str, Any]) -> None:
        """Set the run's summary and close it, in bounded time."""
        if self._run is not None:
            with _bounded("finetune"):
                self._run.summary.update(summary)
                self._run.finish()

    def _keep(self) -> None:
        write_json(self._record, {"id": self.id, "rows": self._rows})


@contextmanager
def going_on(run: Run, job_type: str) -> Iterator[Any]:
    """Give the wandb run of the fine-tuning in models/finetune, to add to; None where it has none or wandb fails."""
    tracked = None
    with _bounded(job_type):
        if run.tracking != "disabled" and RECORD.exists():
            tracked = _start(run, read_json(RECORD)["id"], job_type=job_type)
    if tracked is None:
        yield None
        return
    with _bounded(job_type):
        yield tracked
        tracked.finish()


@contextmanager
def another(run: Run, suffix: str, job_type: str) -> Iterator[Any]:
    """Give a run beside the fine-tuning's, of its group."""
    tracked = _start(run, f"{read_json(RECORD)['id']}-{suffix}", job_type=job_type)
    yield tracked
    tracked.finish()


def interleaved(history: Sequence[Row], curve: Sequence[Row]) -> list[Row]:
    """Put the rows of an epoch's steps before its own; both in order, each with its ``epoch``."""
    return [row for each in history for row in (*(step for step in curve if step["epoch"] == each["epoch"]), each)]


def _start(run: Run, run_id: str, *, job_type: str, config: dict[str, Any] | None = None) -> Any:
    """Open a run; where the server can't be reached, offline."""
    import wandb  # noqa: PLC0415  (not needed where tracking is disabled)

    assert run.tracking != "disabled"
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=SECONDS_TO_START,
        finish_timeout=SECONDS_TO_FINISH,
        finish_timeout_raises=True,
    )
    options: dict[str, Any] = {
        "project": PROJECT,
        "id": run_id,
        "group": run_id.partition("-")[0],
        "job_type": job_type,
    }
    options |= {"config": config, "resume": "allow", "settings": settings}
    try:
        return wandb.init(**options, mode=run.tracking)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise UserError(f"run.tracking: {error}: `wandb login` first, or use offline or disabled") from error
    except wandb.errors.CommError as error:
        logger.warning("wandb's server does not answer (%s): this run is kept offline, for `wandb sync`", error)
        return wandb.init(**options, mode="offline")


@contextmanager
def _bounded(stage: str) -> Iterator[None]:
    """Say what wandb could not do, and go on: the stage's own results are whole."""
    try:
        yield
    except _failures() as error:
        logger.warning("wandb did not get all of %s (%s); what it has in wandb/ goes up by `wandb sync`", stage, error)


def _failures() -> tuple[type[Exception], ...]:
    import wandb  # noqa: PLC0415

    return wandb.errors.Error, OSError, TimeoutError


def _rows_on_disk(run_id: str, known: int) -> int | None:
    """Count the rows in the offline files of a run, waiting a little for those that were known; None without files."""
    began = time.monotonic()
    folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    while files := sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        found = max(map(_rows_in, files))
        if found >= known or time.monotonic() - began > SECONDS_TO_FLUSH:
            return found
        time.sleep(0.2)
    return None


def _rows_in(file: Path) -> int:
    """Count the rows up to the last whole one in a file that may end in the middle of a record."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    records = (json.loads(line) for line in printed.splitlines() if '"type":"history"' in line)
    return max((record["history"]["step"]["num"] + 1 for record in records), default=0)
