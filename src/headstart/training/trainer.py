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
from typing import NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy

from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import RunConfig
from headstart.core.io import read_json, write_json
from headstart.core.run_state import write_stopped
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.process_group import ProcessGroup, layout
from headstart.distributed.signals import StopRequested, stop_flag
from headstart.models.timm_checkpoint import Weights, weights_of_module
from headstart.training.batch_size import AccumulationFinder
from headstart.training.callbacks import EpochReport, LogHistory, SettledBuckets
from headstart.training.checkpoint import CheckpointManager, RunDir, latest_checkpoint, load_checkpoint, mode_of
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.module import FineTuner, HistoryRow
from headstart.training.regularization.ledger import LedgerRow

logger = logging.getLogger(__name__)


def fit(
    classifier: FineTuner,
    images: FineTuneDataModule,
    *,
    finetune: FinetuneConfig,
    run: RunConfig,
    process_group: ProcessGroup,
    folder: RunDir,
    log_history: LogHistory,
) -> HistoryRow:
    """Train phase after phase, going on from ``folder`` where it has a state.

    Args:
        classifier: freshly built.
        images: the data module.
        finetune: the section of params.
        run: the section of params.
        process_group: who trains.
        folder: where the states are.
        log_history: gets the history and the curve, on rank 0, when the saved state contains it.

    Returns:
        The figures before the first step, as a history row of epoch 0.

    Raises:
        UserError: the loss was not finite, or a state that is needed could not be saved.
        SystemExit: after a signal, 128 + its number on rank 0; the next start goes on at the very step.
    """
    state = process_group.broadcast_from_rank_zero(lambda: latest_checkpoint(folder))
    place = process_group.broadcast_from_rank_zero(lambda: _Place.of(state))
    with (
        stop_flag() as stop,
        _ending(process_group),
        watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog,
    ):
        watchdog.saved_steps = place.steps
        average = None if finetune.ema is None else EMAWeightAveraging(process_group.device, decay=finetune.ema)
        states = CheckpointManager(
            folder, finetune, run, process_group, stop=stop, watchdog=watchdog, images=images, average=average
        )
        start = _start(finetune, run, process_group, states, classifier=classifier, images=images)
        report = EpochReport(log_history, finetune.epochs)
        for phase in range(len(classifier.phases)):
            last = phase == len(classifier.phases) - 1
            last_epoch = finetune.epochs if last else (phase + 1) * finetune.phase_epochs
            if place.stopped or place.epochs >= last_epoch:
                continue
            classifier.enter(phase)
            images.begin_at(place.epochs, place.step)
            # An earlier phase only prepares the next one: its plateau is no reason to leave that out.
            stopping = [_early_stopping(finetune)] if last else []
            trainer = _trainer(finetune, run, states, [report, *stopping], last_epoch)
            trainer.fit(classifier, images, ckpt_path=state, weights_only=True)
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
        state = load_checkpoint(path)
        step = len(state["epoch_so_far"]["norms"])
        place = cls(len(state["history"]), step, state["global_step"], state["stopped"])
        where = f"in epoch {place.epochs + 1} after step {place.step}" if place.step else f"after epoch {place.epochs}"
        logger.info("finetune: going on %s", where)
        return place


@contextmanager
def _ending(process_group: ProcessGroup) -> Iterator[None]:
    """Turn an agreed stop into a marker and an exit code; the other ranks' is 0, so that no launcher kills rank 0."""
    try:
        yield
    except StopRequested as stop:
        if process_group.rank:
            sys.exit(0)
        message = f"stopped by {stop.signal.name} after {stop.steps} steps: start again, and it goes on from there"
        write_stopped("finetune", stop.signal.name, stop.steps, message)
        logger.info("finetune: %s", message)
        sys.exit(128 + stop.signal)


def load_history(folder: RunDir) -> tuple[list[HistoryRow], list[LedgerRow], list[HistoryRow]]:
    """Return the history, the ledger and the curve that the last state contains."""
    state = load_checkpoint(folder.last)
    return state["history"], state["ledger"], state["curve"]


def _start(
    finetune: FinetuneConfig,
    run: RunConfig,
    process_group: ProcessGroup,
    states: CheckpointManager,
    *,
    classifier: FineTuner,
    images: FineTuneDataModule,
) -> HistoryRow:
    """Return the figures before the first step, validated once."""
    path = states.folder.start
    known: HistoryRow | None = process_group.broadcast_from_rank_zero(
        lambda: read_json(path) if path.exists() else None
    )
    if known is not None:
        return known
    trainer = _trainer(finetune, run, states, [], finetune.epochs)
    (figures,) = trainer.validate(classifier, images, verbose=False)
    start: HistoryRow = {"epoch": 0, **{name: figures[name] for name in ("val_loss", "val_accuracy")}}
    if process_group.rank == 0:
        write_json(path, start)
    return start


def _early_stopping(finetune: FinetuneConfig) -> EarlyStopping:
    rule = finetune.early_stopping
    return EarlyStopping(rule.monitor, min_delta=rule.min_delta, patience=rule.patience, mode=mode_of(rule.monitor))


def _trainer(
    finetune: FinetuneConfig, run: RunConfig, states: CheckpointManager, others: list[Callback], last_epoch: int
) -> Trainer:
    _quieten()
    assert finetune.precision != "auto"  # the stage has chosen
    found = layout(run)
    callbacks = [*others, states.finite, AccumulationFinder(), SettledBuckets(), states]
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


def best_epoch(folder: RunDir, start: HistoryRow, monitor: str) -> tuple[HistoryRow, Weights | None, Weights | None]:
    """Return the best epoch, the start counted as epoch 0.

    Returns:
        Its history row; its weights, None for the start; and where an average is kept, which the weights then are, the
        raw weights beside it.
    """
    state = load_checkpoint(folder.best)
    best = state["history"][-1]
    sign = 1 if mode_of(monitor) == "min" else -1
    if not sign * best[monitor] < sign * start[monitor]:  # nor where it is no number
        return start, None, None
    raw = state.get("current_model_state")
    return best, weights_of_module(state["state_dict"]), None if raw is None else weights_of_module(raw)
