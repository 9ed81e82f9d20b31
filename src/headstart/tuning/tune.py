"""`headstart tune`: the best values of ``finetune`` that a search finds within a budget of wall clock.

Each try is a fine-tuning with params of its own, in its own run folder, stopped and continued as any interrupted one
is. So the winner's is whole when the search ends, and `dvc repro` with the params that it writes trains nothing anew.
"""

import logging
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from filelock import FileLock

from headstart.config.completion import complete_params, overlay_of
from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError, first_line
from headstart.core.io import read_json, write_json, write_table
from headstart.data.dataset import PreparedDataset, read_groups, read_values
from headstart.slurm.repro import repro
from headstart.slurm.supervisor import FORWARDED
from headstart.stages import finetune
from headstart.training.checkpoint import RunDir, load_checkpoint, run_key
from headstart.training.figures import shown
from headstart.training.phases import TrainingPlan
from headstart.training.regularization.param_groups import NO_DECAY_SUFFIX
from headstart.tuning.experiments import save_experiments
from headstart.tuning.halving import Halving, Job, Try, epochs_that_fit, rungs_of
from headstart.tuning.observer import SCORES, Observer
from headstart.tuning.optimism import corrected, corrected_measure
from headstart.tuning.space import Space, with_changes
from headstart.tuning.state import SearchFolder

PARAMS_FILE = Path("params.yaml")  # DVC's
FAILURES = 3
"""Tries that fail before any other has succeeded, after which it is not their values that are wrong."""

logger = logging.getLogger(__name__)


def tune(budget: float, named: Sequence[str], most: int | None = None) -> None:
    """Search within ``budget`` seconds of the start of this process; then write params.yaml and models/finetune.

    Args:
        budget: wall clock in seconds; what earlier starts of the same search used is part of it.
        named: dotted keys that are searched although they are not at their defaults.
        most: tries; None: as many as time allows.

    Raises:
        UserError: the params are wrong, a named key has no range, or no training fits into the budget.
        SystemExit: DVC failed, or a signal stopped the search; the same command goes on.
    """
    began = psutil.Process().create_time()
    start_up = time.time() - began
    paths.TUNING.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.TUNING / "start.lock"):  # of several processes one makes what they need and measures
        _repro("probe")
        params = load_params(PARAMS_FILE)
        content = {"params": params.record(), "named": sorted(named)}
        key = run_key(content, [paths.DATASET, paths.HEADS, paths.HEADS_INFO])
        folder = SearchFolder(paths.TUNING / key, began)
        # What follows the search starts DVC and a stage once more.
        search = _Search(params, folder, named, budget - 3 * start_up)
        folder.join()
        with search.keeping_what_is_there():
            search.measure()
    with search.keeping_what_is_there():
        search.train_jobs(most)
    if not folder.leave():
        logger.info("tune: others still search, and the last of them ends it")
        return
    search.end()
    _repro("finetune")
    logger.info("tune: %.0f s of %.0f s; `dvc repro` evaluates it on the test split, once", folder.used(), budget)


def _repro(stage: str) -> None:
    """Run DVC up to a stage; raises SystemExit with the code of a failure. Ctrl-C then is this process's again."""
    handlers = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGCHLD)}
    if code := repro([stage]):
        raise SystemExit(code)
    for number, handler in handlers.items():
        signal.signal(number, handler)


class _Search:
    """A search in its folder, and the training of its tries."""

    def __init__(self, params: Params, folder: SearchFolder, named: Sequence[str], seconds: float) -> None:
        self._params, self._folder, self._seconds = params, folder, seconds
        prepared = PreparedDataset.open()
        self._space = Space(params, named, in_chans=prepared.input["input_size"][0], **prepared.training_size())
        self._monitor = self._space.plan.monitor
        logger.info("tune: searched are %s", ", ".join(self._space.keys) or "no keys: none is at its default")

    @property
    def seconds_left(self) -> float:
        """Seconds until the winner must be trained."""
        return max(0.0, self._seconds - self._folder.used())

    @contextmanager
    def keeping_what_is_there(self) -> Iterator[None]:
        """Print, where a signal stops the search, that it goes on from there."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            done, left = len(self._folder.tries()), self.seconds_left
            self._folder.leave()
            logger.info("tune: stopped; %d tries are kept, and the same command goes on with %.0f s", done, left)
            raise

    def measure(self) -> None:
        """Train the first epoch with the params as they are, and fix how many epochs a whole training has.

        Raises:
            UserError: not one training fits into the budget.
        """
        if self._folder.schedule is not None:
            return
        space, wanted = self._space, self._space.epochs
        first = self._train(Job(0, 1), wanted)
        if first.failed:
            raise UserError(first.failed)
        took = first.epoch_seconds, first.seconds - first.epoch_seconds
        epochs = epochs_that_fit(wanted, *took, self.seconds_left)
        if epochs < wanted and not (epochs and space.epochs_may_change):
            needed = wanted * first.epoch_seconds + self._folder.used()
            raise UserError(
                f"--budget: an epoch takes {first.epoch_seconds:.0f} s, so that one training of {wanted} epochs takes "
                f"{needed / 60:.0f} minutes with what comes before it: give it more, or lower finetune.epochs"
            )
        if epochs < wanted:
            logger.info("tune: %d epochs of %.1f s fit, so each try has as many", epochs, first.epoch_seconds)
            shutil.rmtree(first.run)
            shutil.rmtree(self._folder.of(0))
            self._folder.save(Try(0, {}, 0))  # it begins anew, with another schedule
        self._folder.set_schedule(epochs)

    def train_jobs(self, most: int | None) -> None:
        """Train one job after the other until none fits into the time that is left.

        Raises:
            UserError: the first tries have all failed.
        """
        epochs = self._epochs
        rungs = rungs_of(epochs, min(self._space.warmup_epochs, epochs))
        halving = Halving(rungs, self._monitor, most if self._space.keys else 1)
        while True:
            with self._folder.next_job(halving, self.seconds_left) as job:
                if job is None:
                    return
                self._train(job, epochs)
            tries = self._folder.tries()
            if len(tries) >= FAILURES and all(each.failed for each in tries):
                raise UserError(tries[-1].failed)

    @property
    def _epochs(self) -> int:
        epochs = self._folder.schedule
        assert epochs is not None  # since the start
        return epochs

    def _params_of(self, each: Try) -> Params:
        return with_changes(self._params, each.changes)

    def _train(self, job: Job, epochs: int) -> Try:
        """Train a try up to the job's epoch, save what came of it and print a line."""
        folder = self._folder.of(job.number)
        each = next((one for one in self._folder.tries() if one.number == job.number), Try(job.number, {}, 0))
        each.goal, each.changes = job.epochs, self._space.propose(job.number, epochs)
        self._folder.save(each)
        # A run of the user's own with these params has left no scores of its images: it is trained once more.
        fresh = not (folder / "0.npy").exists()
        run = self._params.run.model_copy(update={"devices": 1, "tracking": "disabled", "resume": not fresh})
        params = self._params_of(each).model_copy(update={"run": run}).declared(finetune.PARAMS)
        observer, began = Observer(folder), time.perf_counter()
        try:
            with _quiet():
                run_dir = finetune.train(params, stop_after=job.epochs, observers=[observer])
            _read(each, run_dir, epochs)
        except UserError as error:
            each.failed = first_line(error)
        each.applied = observer.applied or each.applied
        each.seconds += round(time.perf_counter() - began, 3)
        each.trainings += 1
        self._folder.save(each)
        logger.info("%s", _line(each, epochs, self._space.plan))
        return each

    def end(self) -> None:
        """Write what was found, and the params of the winner; its training is whole."""
        tries = self._folder.tries()
        winner = Halving([self._epochs], self._monitor).winner(tries)
        if winner is None:
            raise UserError(f"tune: no try could be trained to its end; the first: {tries[0].failed}")
        best, figures = winner.best(self._monitor), self._space.plan.figures
        cost = self._cost_of_choosing(tries)
        report = {
            "tries": len(tries), "epochs": sum(each.epochs for each in tries), "seconds": self._folder.used(),
            "winner": winner.number, "changes": winner.changes, "applied": winner.applied,
            "best_epoch": best["epoch"], "monitor": self._monitor.name,
            **{name: best[name] for name in figures}, **cost,
            "finetune": self._params_of(winner).finetune.model_dump(),
        }  # fmt: skip
        keys = list(dict.fromkeys(key for each in tries for key in each.changes))
        columns = ["try", "epochs", "best_epoch", *figures, "seconds", "failed", *keys]
        write_table(paths.TUNING_TABLE, columns, [_row(each, keys, self._space.plan) for each in tries])
        for each in tries:
            write_json(self._folder.of(each.number) / "changes.json", overlay_of(each.changes))
            if each.number not in {0, winner.number} and each.run:
                shutil.rmtree(each.run, ignore_errors=True)  # gigabytes, with a large backbone
        saved = save_experiments(self._folder.of, tries, PARAMS_FILE, self._monitor, figures)
        write_json(paths.TUNING_REPORT, report)
        changes = complete_params(PARAMS_FILE, self._folder.of(winner.number) / "changes.json")
        logger.info("\n".join(["tune: try %d is the best of %d", *changes]), winner.number, len(tries))
        name = self._space.plan.first_measure
        logger.info(
            "tune: its %s on validation is %s; what was chosen in this way has about %s on new images",
            *(figures[f"val_{name}"].title, *map(shown, (best[f"val_{name}"], cost[f"corrected_{name}"]["value"]))),
        )
        logger.info("tune: %s, and %s", paths.TUNING_TABLE, saved)

    def _cost_of_choosing(self, tries: Sequence[Try]) -> dict[str, Any]:
        """Estimate the winner's figures on new images."""
        if not (plan := self._space.plan).is_additive:
            outputs = [each for one in tries if not one.failed for each in self._folder.scores(one)]
            values, groups = read_values("validation"), read_groups("validation")
            estimate = corrected_measure(outputs, values, plan.target, self._monitor, groups)
            none = {"value": None, "interval": None}
            return {f"corrected_{plan.first_measure}": estimate._asdict() if estimate else none}
        scores = np.concatenate([self._folder.scores(each) for each in tries if not each.failed])
        by_name = dict(zip(SCORES, scores.swapaxes(0, 1), strict=True))
        costs = by_name[{"val_loss": "loss", "val_accuracy": "error"}.get(self._monitor.name, "calibrated_loss")]
        labels, groups = read_values("validation"), read_groups("validation")
        error, loss = (corrected(costs, by_name[name], labels, groups) for name in ("error", "loss"))
        accuracy = {"value": 1 - error.value, "interval": error.interval and [1 - e for e in error.interval[::-1]]}
        return {"corrected_accuracy": accuracy, "corrected_loss": loss._asdict()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what each training would log; tune has a line for it."""
    loggers = [logging.getLogger(f"headstart.{name}") for name in ("training", "stages", "models")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _read(each: Try, run_dir: RunDir, epochs: int) -> None:
    """Read what the last checkpoint of a run has; raises UserError where its loss is not finite."""
    checkpoint = load_checkpoint(run_dir.last)
    each.rows = [read_json(run_dir.start), *checkpoint["history"]]
    each.over = bool(checkpoint["stopped"]) or each.epochs >= epochs
    each.run = str(run_dir.path.absolute())
    run_dir.previous.unlink(missing_ok=True)  # the last is whole
    if any(row["val_loss"] is None for row in each.rows):
        raise UserError("the validation loss is not finite")


def _line(each: Try, epochs: int, plan: TrainingPlan) -> str:
    """Return what is printed of a try: its figures, and the values that its optimiser and layers had."""
    if each.failed:
        return f"try {each.number:3}  failed: {each.failed}"
    best, applied = each.best(plan.monitor), each.applied
    groups = "; ".join(
        f"{name} lr {rates[0]:.2g}{f' to {rates[-1]:.2g}' * (rates[0] < rates[-1])}, λ {strength:.2g}"
        for (name, strength), rates in _by_group(applied["groups"]).items()
    )
    augment = applied["augment"]
    return (
        f"try {each.number:3}  {each.epochs:2} of {epochs} epochs  {plan.told(best)} at {best['epoch']}  "
        f"{each.seconds:.1f} s  {applied['optimizer']}: {groups}; "
        f"BatchNorm: {applied['batch_norm']}; clip {applied['clip']}; smoothing {applied['label_smoothing']}; crops "
        f"from {augment['scale'][0]}"
    )


def _by_group(groups: Sequence[dict[str, Any]]) -> dict[tuple[str, float], list[float]]:
    """Return the sorted learning rates of each group with its λ; those outside of every penalty are left out."""
    rates: dict[tuple[str, float], list[float]] = {}
    for group in groups:
        if not group["name"].endswith(NO_DECAY_SUFFIX):
            strength = group["weight_decay"] / 2 + group["l2_in_loss"]
            rates[group["name"], strength] = sorted([*rates.get((group["name"], strength), []), group["lr"]])
    return rates


def _row(each: Try, keys: Sequence[str], plan: TrainingPlan) -> list[Any]:
    best = each.best(plan.monitor) if each.rows and not each.failed else {}
    figures = [best.get(name, "") for name in ("epoch", *plan.figures)]
    return [each.number, each.epochs, *figures, each.seconds, each.failed, *(each.changes.get(key, "") for key in keys)]
