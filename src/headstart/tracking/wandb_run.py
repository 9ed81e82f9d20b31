"""One wandb run per fine-tuning, in which every row of its history appears once, whatever interrupted the training.

A row is logged once the saved checkpoint contains it, under a step number of its own. What wandb has is the truth, not
what is remembered here: a start asks the server, or reads the offline files, and continues after the last row there. An
offline file that a kill left without an end is deleted first: the checkpoint has its rows, and `wandb sync` stops at a
file that ends within a record.

wandb is imported inside the functions of this package: it is not needed where tracking is disabled.
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
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 60, 120

TrackedRow = dict[str, int | float]

logger = logging.getLogger(__name__)


class Tracker:
    """The wandb run of a fine-tuning, resumed after an interruption; its failures never end the training.

    Its ``id`` is wandb's; in a sweep the agent's.
    """

    def __init__(self, run: RunConfig, record: Path, config: dict[str, Any]) -> None:
        """Start the run, or resume it; raises UserError where wandb has no key, or a wrong one.

        The file ``record`` has the run's id (``id``), its number of rows now (``rows``) and before this start
        (``first``).
        """
        new = {"id": secrets.token_hex(4), "rows": 0, "first": 0}
        recorded: dict[str, Any] = read_json(record) if record.exists() else new
        self.id: str = os.environ.get("WANDB_RUN_ID") or recorded["id"]
        if self.id != recorded["id"]:
            recorded = new
        self._run, offline = _open_run(run, self.id, job_type="finetune", config=config)
        if not self._run.offline:
            rows = self._run.step
        elif offline.rows is not None:
            rows = offline.rows
        else:  # the files were deleted for lack of an end, or sent and removed
            rows = recorded["first"] if offline.deleted else recorded["rows"]
        for pattern, axis in (("*", "epoch"), ("step/*", "step")):
            self._run.define_metric(pattern, step_metric=axis, summary="none")
        self._path, self._record = record, {"id": self.id, "rows": rows, "first": rows}
        write_json(self._path, self._record)

    def log(self, history: Sequence[TrackedRow], curve: Sequence[TrackedRow]) -> None:
        """Log the rows that wandb does not have yet; the arguments also contain all earlier ones.

        The history has one row per epoch that the saved checkpoint contains; rows of steps of other epochs wait.
        """
        if self._run is None:
            return
        rows = interleave_rows(history, curve)
        try:
            for number in range(self._record["rows"], len(rows)):
                self._run.log(dict(rows[number]), step=number, commit=True)
        except _wandb_errors() as error:
            logger.warning("wandb gets no more of this run: %s", error)
            self._run = None
            return
        self._record["rows"] = max(self._record["rows"], len(rows))
        write_json(self._path, self._record)

    def finish(self, summary: dict[str, Any]) -> None:
        """Set the run's summary and close it, in bounded time."""
        if self._run is not None:
            with _warn_on_failure("finetune"):
                self._run.summary.update(summary)
                self._run.finish()


@contextmanager
def resume_run(run: RunConfig, stage: str, *, suffix: str = "") -> Iterator[Any]:
    """Resume the wandb run of the model in models/finetune to add to it, and close it in bounded time.

    A ``suffix`` of its id opens another run in the same group instead; a warning names the stage.

    Yields:
        wandb's run; None where the model was trained untracked, or wandb fails.
    """
    resumed = None
    with _warn_on_failure(stage):
        if run.tracking != "disabled" and TRACKED_RUN.exists():
            if "WANDB_SWEEP_ID" in os.environ:  # wandb begins no other run than the agent's there
                suffix = ""
            run_id = read_json(TRACKED_RUN)["id"] + (f"-{suffix}" if suffix else "")
            resumed, _ = _open_run(run, run_id, job_type=suffix or "finetune")
    if resumed is None:
        yield None
        return
    with _warn_on_failure(stage):
        yield resumed
        resumed.finish()


def interleave_rows(history: Sequence[TrackedRow], curve: Sequence[TrackedRow]) -> list[TrackedRow]:
    """Return each epoch's rows of steps followed by its own row; each row has its ``epoch``."""
    return [row for each in history for row in (*(step for step in curve if step["epoch"] == each["epoch"]), each)]


def _open_run(
    run: RunConfig, run_id: str, *, job_type: str, config: dict[str, Any] | None = None
) -> tuple[Any, "_OfflineFiles"]:
    """Open a run, offline where the server can't be reached; return also what its offline files had before."""
    import wandb  # noqa: PLC0415

    offline = _read_offline_files(run_id)
    settings = {"silent": True, "console": "off", "init_timeout": INIT_TIMEOUT_S}
    settings |= {"finish_timeout": FINISH_TIMEOUT_S, "finish_timeout_raises": True}
    options: dict[str, Any] = {"project": PROJECT, "id": run_id, "group": run_id.partition("-")[0]}
    options |= {"job_type": job_type, "config": config, "resume": "allow", "settings": settings}
    try:
        opened = wandb.init(**options, mode=run.tracking)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise UserError(f"run.tracking: {error}: `wandb login` first, or use offline or disabled") from error
    except wandb.errors.CommError as error:
        logger.warning("wandb's server does not answer (%s): this run is kept offline, for `wandb sync`", error)
        wandb.teardown()  # it still holds the run that failed to start
        opened = wandb.init(**options, mode="offline")
    if opened.offline:  # a sync replaces the summary by that of each file in turn
        opened.summary.update(offline.summary)
    return opened, offline


@contextmanager
def _warn_on_failure(stage: str) -> Iterator[None]:
    """Turn wandb's errors into a warning: the stage's own results are complete without it."""
    try:
        yield
    except _wandb_errors() as error:
        # Not `wandb sync`, which would send again what the server already has of an online run.
        logger.warning(
            "wandb did not get all of %s (%s); once it can, `dvc repro -f -s %s` sends the rest", stage, error, stage
        )


def _wandb_errors() -> tuple[type[Exception], ...]:
    import wandb  # noqa: PLC0415

    return wandb.errors.Error, OSError, ValueError, UserError


class _OfflineFiles(NamedTuple):
    """A run's offline files together: their number of rows, None for no row, and whether one had to be deleted."""

    rows: int | None
    summary: dict[str, Any]
    deleted: bool


def _read_offline_files(run_id: str) -> _OfflineFiles:
    """Read a run's offline files, and delete each that a kill left without an end and that was not sent."""
    rows, summary, deleted = None, dict[str, Any](), False
    folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    for file in sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
        inspected = subprocess.run(command, capture_output=True, check=False)
        if inspected.returncode:  # not one of wandb's
            continue
        content = json.loads(inspected.stdout)
        if content["exit_code"] is None and not file.with_name(f"{file.name}.synced").exists():
            shutil.rmtree(file.parent)
            deleted = True
            continue
        rows = rows if content["step"] is None else content["step"] + 1
        summary |= {name: value for name, value in content["summary"].items() if not name.startswith("_")}
    return _OfflineFiles(rows, summary, deleted)
