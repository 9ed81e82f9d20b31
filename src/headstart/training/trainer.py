"""Where in an epoch a state goes on, in the numbers by which Lightning's loops find their place.

Lightning (2.6) goes on within an epoch only from where it saved itself, counts batches and not steps, and skips the
validation that a save after the last batch has still before it.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy

from headstart.config.finetune import Finetune
from headstart.config.schema import Run
from headstart.core.io import read_json, write_json
from headstart.core.run_state import write_stopped
from headstart.distributed.heartbeat import watched
from headstart.distributed.process_group import Ranks, layout
from headstart.distributed.signals import StopAgreed, stop_flag
from headstart.models.timm_checkpoint import Weights, weights_of_module
from headstart.training.batch_size import MicroBatches
from headstart.training.callbacks import EpochReport, HandOver, SettledBuckets
from headstart.training.checkpoint import RunFolder, States, load_state, mode_of, usable_state
from headstart.training.datamodule import Pictures
from headstart.training.module import Classifier, HistoryRow
from headstart.training.regularization.ledger import Row


def place_loops(loops: dict[str, Any], epoch: int, step: int, steps_per_epoch: int, parts: int) -> None:
    """Write the place into a checkpoint's ``loops``.

    Args:
        loops: changed in place.
        epoch: from 0.
        step: optimiser steps taken in it, from 1 to ``steps_per_epoch``; after the last the validation is to be done.
        steps_per_epoch: optimiser steps.
        parts: batches a step, which may be others than when the state was saved.
    """
    fit = loops["fit_loop"]
    batches, before = step * parts, epoch * steps_per_epoch * parts
    whole = step == steps_per_epoch
    # Within an epoch Lightning expects a batch that is not quite completed: it saves at the end of one.
    done = batches if whole else batches - 1
    current = {"ready": batches, "started": batches, "processed": batches, "completed": done}
    total = {name: before + count for name, count in current.items()}
    fit["epoch_loop.batch_progress"] = {"total": total, "current": current, "is_last_batch": whole}
    if whole:
        # A validation that has begun with its first batch is gone on with, and begins with its first batch.
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        fit["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": {**begun}, "is_last_batch": False}


logger = logging.getLogger(__name__)


def fit(
    classifier: Classifier,
    pictures: Pictures,
    *,
    finetune: Finetune,
    run: Run,
    ranks: Ranks,
    folder: RunFolder,
    hand_over: HandOver,
) -> HistoryRow:
    """Train phase after phase, going on from ``folder`` where it has a state.

    Args:
        classifier: freshly built.
        pictures: the data module.
        finetune: the section of params.
        run: the section of params.
        ranks: who trains.
        folder: where the states are.
        hand_over: gets the history and the curve, on rank 0, when the saved state contains it.

    Returns:
        The figures before the first step, as a history row of epoch 0.

    Raises:
        UserError: the loss was not finite, or a state that is needed could not be saved.
        SystemExit: after a signal, 128 + its number on rank 0; the next start goes on at the very step.
    """
    state = ranks.from_rank_0(lambda: usable_state(folder))
    place = ranks.from_rank_0(lambda: _Place.of(state))
    with stop_flag() as stop, _ending(ranks), watched(ranks.rank, ranks.world, run.timeout_minutes) as watchdog:
        watchdog.saved_steps = place.steps
        average = None if finetune.ema is None else EMAWeightAveraging(ranks.device, decay=finetune.ema)
        states = States(folder, finetune, run, ranks, stop=stop, watchdog=watchdog, pictures=pictures, average=average)
        start = _start(finetune, run, ranks, states, classifier=classifier, pictures=pictures)
        report = EpochReport(hand_over, finetune.epochs)
        for phase in range(len(classifier.phases)):
            last = phase == len(classifier.phases) - 1
            last_epoch = finetune.epochs if last else (phase + 1) * finetune.phase_epochs
            if place.stopped or place.epochs >= last_epoch:
                continue
            classifier.enter(phase)
            pictures.begin_at(place.epochs, place.step)
            # An earlier phase only prepares the next one: its plateau is no reason to leave that out.
            stopping = [_early_stopping(finetune)] if last else []
            trainer = _trainer(finetune, run, states, [report, *stopping], last_epoch)
            trainer.fit(classifier, pictures, ckpt_path=state, weights_only=True)
            state, place = folder.last, _Place(last_epoch, 0, trainer.global_step, trainer.should_stop)
    return start


class _Place(NamedTuple):
    """Where a state stands: whole epochs, optimiser steps in the next one and in all, and whether it stopped early."""

    epochs: int
    step: int
    steps: int
    stopped: bool

    @classmethod
    def of(cls, path: Path | None) -> "_Place":
        if path is None:
            return cls(0, 0, 0, stopped=False)
        state = load_state(path)
        step = len(state["epoch_so_far"]["norms"])
        place = cls(len(state["history"]), step, state["global_step"], state["stopped"])
        where = f"in epoch {place.epochs + 1} after step {place.step}" if place.step else f"after epoch {place.epochs}"
        logger.info("finetune: going on %s", where)
        return place


@contextmanager
def _ending(ranks: Ranks) -> Iterator[None]:
    """Turn an agreed stop into a marker and an exit code; the other ranks' is 0, so that no launcher kills rank 0."""
    try:
        yield
    except StopAgreed as stop:
        if ranks.rank:
            sys.exit(0)
        message = f"stopped by {stop.signal.name} after {stop.steps} steps: start again, and it goes on from there"
        write_stopped("finetune", stop.signal.name, stop.steps, message)
        logger.info("finetune: %s", message)
        sys.exit(128 + stop.signal)


def saved_history(folder: RunFolder) -> tuple[list[HistoryRow], list[Row], list[HistoryRow]]:
    """Give the history, the ledger and the curve that the last state contains."""
    state = load_state(folder.last)
    return state["history"], state["ledger"], state["curve"]


def _start(
    finetune: Finetune, run: Run, ranks: Ranks, states: States, *, classifier: Classifier, pictures: Pictures
) -> HistoryRow:
    """Give the figures before the first step, validated once."""
    path = states.folder.start
    known: HistoryRow | None = ranks.from_rank_0(lambda: read_json(path) if path.exists() else None)
    if known is not None:
        return known
    trainer = _trainer(finetune, run, states, [], finetune.epochs)
    (figures,) = trainer.validate(classifier, pictures, verbose=False)
    start: HistoryRow = {"epoch": 0, **{name: figures[name] for name in ("val_loss", "val_accuracy")}}
    if ranks.rank == 0:
        write_json(path, start)
    return start


def _early_stopping(finetune: Finetune) -> EarlyStopping:
    rule = finetune.early_stopping
    return EarlyStopping(rule.monitor, min_delta=rule.min_delta, patience=rule.patience, mode=mode_of(rule.monitor))


def _trainer(finetune: Finetune, run: Run, states: States, others: list[Callback], last_epoch: int) -> Trainer:
    _quieten()
    assert finetune.precision != "auto"  # the stage has chosen
    found = layout(run)
    callbacks = [*others, states.finite, MicroBatches(), SettledBuckets(), states]
    trainer = Trainer(
        accelerator=found.accelerator,
        devices=found.devices,
        num_nodes=found.nodes,
        strategy=DDPStrategy(gradient_as_bucket_view=True) if found.world > 1 else "auto",
        plugins=[found.environment, states.files],
        precision=finetune.precision,
        max_epochs=last_epoch,
        accumulate_grad_batches=finetune.accumulate,
        gradient_clip_val=finetune.clip,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, states.average] if states.average else callbacks,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=states.folder.path,
        # The metrics of the validation before the first step are updated again in training.
        inference_mode=False,
    )
    # Lightning's handlers broadcast or end with exit code 0, and to agree on them it waits for the device at each step.
    for owner, name in (
        (trainer._signal_connector, "register_signal_handlers"),  # noqa: SLF001  (there is no switch)
        (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"),
    ):
        assert callable(getattr(owner, name))
        setattr(owner, name, lambda: None)
    return trainer


def _quieten() -> None:
    """Leave out what Lightning says that is not about the user's run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # A loader without workers, srun on the PATH, an epoch that is gone on with, modules that are frozen, metrics that
    # have summed over the ranks before they are logged, and 1x1 convolutions' gradients are all meant; the others are
    # Lightning's own affair with torch.
    for message in (
        "does not have many workers",
        "The `srun` command",
        "You're resuming from a checkpoint that ended before the epoch ended",
        "in eval mode at the start",
        "It is recommended to use `self.log",
        "Grad strides do not match bucket view strides",
        ".*all_gather.* is deprecated",
        "isinstance.treespec",
    ):
        warnings.filterwarnings("ignore", f".*{message}")


def best_epoch(folder: RunFolder, start: HistoryRow, monitor: str) -> tuple[HistoryRow, Weights | None, Weights | None]:
    """Give the best epoch, the start counted as epoch 0.

    Returns:
        Its history row; its weights, None for the start; and where an average is kept, which the weights then are, the
        raw weights beside it.
    """
    state = load_state(folder.best)
    best = state["history"][-1]
    sign = 1 if mode_of(monitor) == "min" else -1
    if not sign * best[monitor] < sign * start[monitor]:  # nor where it is no number
        return start, None, None
    raw = state.get("current_model_state")
    return best, weights_of_module(state["state_dict"]), None if raw is None else weights_of_module(raw)
