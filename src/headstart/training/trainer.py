"""Lightning's Trainer around the step: a fit for each phase, from the checkpoint of the phase or start before.

Phases are fits of their own since DDP averages the gradients only of what trains when it wraps the model.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy

from headstart.config.finetune import ResolvedFinetuneConfig
from headstart.config.schema import RunConfig
from headstart.core.io import read_json, write_json
from headstart.core.run_state import write_stopped
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.launch import layout
from headstart.distributed.process_group import ProcessGroup
from headstart.distributed.signals import StopRequested, stop_flag
from headstart.models.timm_checkpoint import Weights, weights_of_module
from headstart.training.batch_size import AccumulationFinder
from headstart.training.callbacks import AverageFromStart, EpochReport, LogHistory, SettledBuckets
from headstart.training.checkpoint import CheckpointManager, RunDir, latest_checkpoint, load_checkpoint
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.figures import HistoryRow, Monitor, defined
from headstart.training.module import FineTuner
from headstart.training.regularization.ledger import LedgerRow

logger = logging.getLogger(__name__)


def fit(
    module: FineTuner,
    images: FineTuneDataModule,
    *,
    run: RunConfig,
    process_group: ProcessGroup,
    run_dir: RunDir,
    log_history: LogHistory,
    stop_after: int | None = None,
    observers: Sequence[Callback] = (),
) -> HistoryRow:
    """Train phase after phase, from the checkpoint in ``run_dir`` where there is one.

    ``module`` is freshly built. ``log_history`` is called on rank 0. ``stop_after`` ends it after so many epochs of the
    same schedule, saved as after any epoch: a later call goes on from there. ``observers`` only look on.

    Returns:
        The figures before the first step, as a history row of epoch 0.

    Raises:
        UserError: the loss was not finite, or a checkpoint that is needed could not be saved.
        SystemExit: after a signal, 128 + its number on rank 0; the next start resumes at the very step.
    """
    plan, finetune = module.plan, module.plan.finetune
    checkpoint = process_group.broadcast_from_rank_zero(lambda: latest_checkpoint(run_dir))
    position = process_group.broadcast_from_rank_zero(lambda: _Position.of(checkpoint))
    with (
        stop_flag() as stop,
        _exiting_when_stopped(process_group),
        watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog,
    ):
        watchdog.saved_steps = position.steps
        checkpoints = CheckpointManager(
            run_dir,
            run,
            process_group,
            monitor=plan.monitor,
            stop=stop,
            watchdog=watchdog,
            images=images,
            average=None if finetune.ema is None else AverageFromStart(process_group.device, decay=finetune.ema),
        )
        start = _validate_start(module, images, run, process_group, checkpoints=checkpoints, observers=observers)
        report, rule = EpochReport(log_history, finetune.epochs), finetune.early_stopping
        for phase in range(len(plan.phases)):
            end = min(plan.end_of_phase(phase), stop_after or finetune.epochs)
            if position.stopped or position.epochs >= end:
                continue
            module.set_phase(phase)
            images.start_at(position.epochs, position.step)
            # An earlier phase only prepares the next one: its plateau is no reason to leave that out.
            callbacks: list[Callback] = [report, *observers]
            if phase == len(plan.phases) - 1:
                callbacks.append(
                    EarlyStopping(
                        *(rule.monitor, rule.min_delta, rule.patience),
                        mode=plan.monitor.mode,
                        check_finite=rule.monitor.endswith("loss"),  # a measure is undefined of constant outputs
                    )
                )
            trainer = _make_trainer(finetune, run, checkpoints, callbacks, max_epochs=end)
            trainer.fit(module, images, ckpt_path=checkpoint, weights_only=True)
            checkpoint, position = run_dir.last, _Position(end, 0, trainer.global_step, trainer.should_stop)
    return start


class _Position(NamedTuple):
    """Completed epochs, optimiser steps in the epoch under way and in total, and whether early stopping ended it."""

    epochs: int
    step: int
    steps: int
    stopped: bool

    @classmethod
    def of(cls, path: Path | None) -> "_Position":
        if path is None:
            return cls(0, 0, 0, stopped=False)
        checkpoint = load_checkpoint(path)
        step = len(checkpoint["epoch_so_far"]["losses"])
        position = cls(len(checkpoint["history"]), step, checkpoint["global_step"], checkpoint["stopped"])
        epochs = position.epochs
        logger.info(
            "finetune: resuming %s", f"in epoch {epochs + 1} after step {step}" if step else f"after epoch {epochs}"
        )
        return position


@contextmanager
def _exiting_when_stopped(process_group: ProcessGroup) -> Iterator[None]:
    """Turn a requested stop into a marker and an exit code; the other ranks exit with 0, or launchers kill rank 0."""
    try:
        yield
    except StopRequested as stop:
        if process_group.rank:
            sys.exit(0)
        message = f"stopped by {stop.signal.name} after {stop.steps} steps: start again, and it resumes from there"
        write_stopped("finetune", stop.signal.name, stop.steps, message)
        logger.info("finetune: %s", message)
        sys.exit(128 + stop.signal)


def load_history(run_dir: RunDir) -> tuple[list[HistoryRow], list[LedgerRow], list[HistoryRow]]:
    """Return the history, the ledger and the curve that the last checkpoint contains."""
    checkpoint = load_checkpoint(run_dir.last)
    return checkpoint["history"], checkpoint["ledger"], checkpoint["curve"]


def best_epoch(
    run_dir: RunDir, start: HistoryRow, monitor: Monitor
) -> tuple[HistoryRow, Weights | None, Weights | None]:
    """Return the best epoch, the start counted as epoch 0.

    Returns:
        Its history row; its weights, which are the averaged ones with ``finetune.ema``, None for the start; and with
        ``finetune.ema`` the raw weights, else None.
    """
    checkpoint = load_checkpoint(run_dir.best)
    best = checkpoint["history"][-1]
    if not monitor.cost(best) < monitor.cost(start):
        return start, None, None
    raw = checkpoint.get("current_model_state")
    return best, weights_of_module(checkpoint["state_dict"]), None if raw is None else weights_of_module(raw)


def _validate_start(
    module: FineTuner,
    images: FineTuneDataModule,
    run: RunConfig,
    process_group: ProcessGroup,
    *,
    checkpoints: CheckpointManager,
    observers: Sequence[Callback],
) -> HistoryRow:
    """Return the figures before the first step, validated by the first start of a run."""
    path = checkpoints.run_dir.start
    known: HistoryRow | None = process_group.broadcast_from_rank_zero(
        lambda: read_json(path) if path.exists() else None
    )
    if known is not None:
        return known
    epochs = module.plan.finetune.epochs
    trainer = _make_trainer(module.plan.finetune, run, checkpoints, [*observers], max_epochs=epochs)
    (figures,) = trainer.validate(module, images, verbose=False)
    start: HistoryRow = {"epoch": 0, **defined(figures, module.plan.figures)}
    if process_group.rank == 0:
        write_json(path, start)
    return start


def _make_trainer(
    finetune: ResolvedFinetuneConfig,
    run: RunConfig,
    checkpoints: CheckpointManager,
    callbacks: list[Callback],
    *,
    max_epochs: int,
) -> Trainer:
    """Make a Trainer. Each callback costs some 10 µs a step, whatever it does, so only those that are needed."""
    _silence_warnings()
    assert finetune.precision != "auto"  # the stage has chosen
    processes = layout(run)
    if processes.accelerator == "gpu":
        callbacks = [*callbacks, AccumulationFinder()]
    if processes.world > 1:
        callbacks = [*callbacks, SettledBuckets()]
    if checkpoints.average is not None:
        callbacks = [*callbacks, checkpoints.average]
    trainer = Trainer(
        accelerator=processes.accelerator,
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=DDPStrategy(gradient_as_bucket_view=True) if processes.world > 1 else "auto",
        plugins=[processes.environment, checkpoints.files],
        precision=finetune.precision,
        max_epochs=max_epochs,
        accumulate_grad_batches=finetune.accumulate,
        gradient_clip_val=finetune.clip,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoints],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=checkpoints.run_dir.path,
        # The metrics of the validation before the first step are updated again in training.
        inference_mode=False,
    )
    _without_signal_handling(trainer)
    return trainer


def _without_signal_handling(trainer: Trainer) -> None:
    """Remove Lightning's handling of signals, for which it has no switch; ``SignalSync`` does it for all ranks.

    Its handler of SIGTERM calls a collective wherever the rank stands, which deadlocks, and ends others a step earlier
    (github.com/Lightning-AI/pytorch-lightning/issues/20806, open). And to agree on a SIGTERM it waits for the device at
    each step (issues/21487, open).
    """
    for owner, name in (
        (trainer._signal_connector, "register_signal_handlers"),  # noqa: SLF001  (see above)
        (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"),
    ):
        assert callable(getattr(owner, name))
        setattr(owner, name, lambda: None)


def _silence_warnings() -> None:
    """Silence what Lightning says that is not about the user's run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Intended are: a loader without workers, srun on the PATH, an epoch that is resumed, modules that are frozen,
    # metrics that have summed over the ranks before they are logged, and the strides of 1x1 convolutions' gradients.
    # The others are between Lightning and torch.
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
