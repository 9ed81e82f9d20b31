"""The seam to wandb: one run a fine-tuning, in which every row of its history stands once, whatever killed it.

A row is handed over when a saved state contains it, under a number of its own: wandb's step. What wandb has is the
truth, not what this side remembers: a start asks the server, or reads the offline files, and goes on behind the last
row there. An offline file that a kill left without an end is dropped first: the state has its rows, and `wandb sync`
stops at a file that ends within a record.
"""

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from headstart.config.schema import RunConfig
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.core.paths import TRACKED_RUN

PROJECT = "headstart"
SECONDS_TO_START, SECONDS_TO_FINISH = 60, 120

TrackedRow = dict[str, int | float]

logger = logging.getLogger(__name__)


class Tracker:
    """One wandb run of a fine-tuning, gone on with after an interruption; what goes wrong in it never ends a training.

    Attributes:
        id: wandb's name of the run; in a sweep the agent's.
    """

    def __init__(self, run: RunConfig, record: Path, config: dict[str, Any]) -> None:
        """Start the run, or go on with it.

        Args:
            run: the section of params.
            record: file that keeps the run's id, how many rows it has got, and how many before this start.
            config: what to show as the run's config.

        Raises:
            UserError: wandb refuses: no key, or a wrong one.
        """
        self._record = record
        new = {"id": secrets.token_hex(4), "rows": 0, "first": 0}
        kept: dict[str, Any] = read_json(record) if record.exists() else new
        self.id: str = os.environ.get("WANDB_RUN_ID") or kept["id"]
        if self.id != kept["id"]:
            kept = new
        files = _offline_files(self.id)
        self._run = _start(run, self.id, job_type="finetune", summary=files.summary, config=config)
        if not self._run.offline:
            self._rows = self._run.step
        elif files.rows is not None:
            self._rows = files.rows
        else:  # what is not there was dropped, or sent and removed
            self._rows = kept["first"] if files.dropped else kept["rows"]
        self._first = self._rows
        for pattern, axis in (("*", "epoch"), ("step/*", "step")):
            self._run.define_metric(pattern, step_metric=axis, summary="none")
        self._keep()

    def log(self, history: Sequence[TrackedRow], curve: Sequence[TrackedRow]) -> None:
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
        write_json(self._record, {"id": self.id, "rows": self._rows, "first": self._first})


@contextmanager
def resume_run(run: RunConfig, stage: str, *, beside: str = "") -> Iterator[Any]:
    """Return the wandb run of the fine-tuning in models/finetune, to add to, and close it in bounded time.

    Args:
        run: the section of params.
        stage: who adds, for what is said.
        beside: name of another run of its group to give instead.

    Yields:
        wandb's run; None where the model was trained untracked, or wandb fails.
    """
    tracked = None
    with _bounded(stage):
        if run.tracking != "disabled" and TRACKED_RUN.exists():
            if "WANDB_SWEEP_ID" in os.environ:  # the agent's run is the only one that wandb begins there
                beside = ""
            run_id = read_json(TRACKED_RUN)["id"] + (f"-{beside}" if beside else "")
            tracked = _start(run, run_id, job_type=beside or "finetune", summary=_offline_files(run_id).summary)
    if tracked is None:
        yield None
        return
    with _bounded(stage):
        yield tracked
        tracked.finish()


def interleaved(history: Sequence[TrackedRow], curve: Sequence[TrackedRow]) -> list[TrackedRow]:
    """Put the rows of an epoch's steps before its own; both in order, each with its ``epoch``."""
    return [row for each in history for row in (*(step for step in curve if step["epoch"] == each["epoch"]), each)]


def _start(
    run: RunConfig, run_id: str, *, job_type: str, summary: dict[str, Any], config: dict[str, Any] | None = None
) -> Any:
    """Open a run; where the server can't be reached, offline. An offline file then has the summary of those before."""
    import wandb  # noqa: PLC0415  (not needed where tracking is disabled)

    assert run.tracking != "disabled"
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=SECONDS_TO_START,
        finish_timeout=SECONDS_TO_FINISH,
        finish_timeout_raises=True,
    )
    options: dict[str, Any] = {"project": PROJECT, "id": run_id, "group": run_id.partition("-")[0]}
    options |= {"job_type": job_type, "config": config, "resume": "allow", "settings": settings}
    try:
        tracked = wandb.init(**options, mode=run.tracking)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise UserError(f"run.tracking: {error}: `wandb login` first, or use offline or disabled") from error
    except wandb.errors.CommError as error:
        logger.warning("wandb's server does not answer (%s): this run is kept offline, for `wandb sync`", error)
        wandb.teardown()  # it holds the run that it could not begin
        tracked = wandb.init(**options, mode="offline")
    if tracked.offline:  # a sync replaces the summary by each file's in turn
        tracked.summary.update(summary)
    return tracked


@contextmanager
def _bounded(stage: str) -> Iterator[None]:
    """Say what wandb could not do, and go on: the stage's own results are whole."""
    try:
        yield
    except _failures() as error:
        # Not `wandb sync`, which would send what the server has of an online run once more.
        logger.warning(
            "wandb did not get all of %s (%s); once it can, `dvc repro -f -s %s` sends the rest", stage, error, stage
        )


def _failures() -> tuple[type[Exception], ...]:
    import wandb  # noqa: PLC0415

    return wandb.errors.Error, OSError, ValueError, UserError


class _OfflineFiles(NamedTuple):
    """What a run's offline files have: how many rows, None where there are none, and the summary of all together.

    ``dropped`` tells whether there was one without an end.
    """

    rows: int | None
    summary: dict[str, Any]
    dropped: bool


def _offline_files(run_id: str) -> _OfflineFiles:
    """Read a run's offline files, and drop each that a kill has left without an end and that was not sent."""
    rows, summary, dropped = None, dict[str, Any](), False
    folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    for file in sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
        told = subprocess.run(command, capture_output=True, check=False)
        if told.returncode:  # not one of wandb's
            continue
        found = json.loads(told.stdout)
        if found["exit_code"] is None and not file.with_name(f"{file.name}.synced").exists():
            shutil.rmtree(file.parent)
            dropped = True
            continue
        rows = rows if found["step"] is None else found["step"] + 1
        summary |= {name: value for name, value in found["summary"].items() if not name.startswith("_")}
    return _OfflineFiles(rows, summary, dropped)
