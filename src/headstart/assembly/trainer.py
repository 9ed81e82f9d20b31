"""Runs the phases of a fine-tuning with Lightning's Trainer, each from the last state, and picks the best epoch."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from headstart.assembly.callbacks import EpochReport, FiniteLoss, MicroBatches
from headstart.assembly.classifier import Classifier, HistoryRow
from headstart.assembly.data import Pictures
from headstart.assembly.inference import device_of
from headstart.assembly.run_folder import RunFolder
from headstart.ground.artifacts import read_json, write_json
from headstart.ground.finetune import Finetune
from headstart.ground.params import Run
from headstart.libraries.ledger import Row

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]


def fit(
    classifier: Classifier,
    pictures: Pictures,
    *,
    finetune: Finetune,
    run: Run,
    folder: RunFolder,
    hand_over: Callable[[list[HistoryRow]], None],
) -> HistoryRow:
    """Train phase after phase, going on from ``folder`` where it has a state.

    Args:
        classifier: freshly built.
        pictures: the data module.
        finetune: the section of params.
        run: the section of params.
        folder: where the states are.
        hand_over: gets the history, on rank 0, when the saved state contains it.

    Returns:
        The figures before the first step, as a history row of epoch 0.

    Raises:
        UserError: the loss was not finite.
        SystemExit: 128 + the signal's number after SIGTERM or Ctrl-C; the next start goes on.
    """
    report = EpochReport(hand_over, finetune.epochs)
    done, stopped = _progress(folder)
    with _exit_codes():
        if folder.start.exists():
            start: HistoryRow = read_json(folder.start)
        else:
            start = _validated(_trainer(finetune, run, folder, [], finetune.epochs), classifier, pictures)
        for phase in range(len(classifier.phases)):
            last = phase == len(classifier.phases) - 1
            last_epoch = finetune.epochs if last else (phase + 1) * finetune.phase_epochs
            if stopped or done >= last_epoch:
                continue
            classifier.enter(phase)
            callbacks = [report, FiniteLoss(), MicroBatches(), *_callbacks(finetune, run, folder, last_phase=last)]
            trainer = _trainer(finetune, run, folder, callbacks, last_epoch)
            if trainer.is_global_zero and not folder.start.exists():
                write_json(folder.start, start)
            state = folder.last if folder.last.exists() else None
            trainer.fit(classifier, pictures, ckpt_path=state, weights_only=True)
            stopped = trainer.should_stop
    return start


@contextmanager
def _exit_codes() -> Iterator[None]:
    """End with 128 + the signal's number, where Lightning would end with 0 after SIGTERM and 1 after Ctrl-C."""
    try:
        yield
    except SIGTERMException:
        logger.info("stopped by SIGTERM: start again, and it goes on after the last whole epoch")
        sys.exit(128 + signal.SIGTERM)
    except (KeyboardInterrupt, SystemExit):
        logger.info("stopped: start again, and it goes on after the last whole epoch")
        sys.exit(128 + signal.SIGINT)


def saved_history(folder: RunFolder) -> tuple[list[HistoryRow], list[Row]]:
    """Give the history and the ledger that the last state contains."""
    state = _load(folder.last)
    return state["history"], state["ledger"]


def _load(state: Path) -> Any:
    return torch.load(state, weights_only=True, mmap=True, map_location="cpu")


def _progress(folder: RunFolder) -> tuple[int, bool]:
    """Give the epochs that the saved state contains, and whether the early stop has come."""
    if not folder.last.exists():
        return 0, False
    state = _load(folder.last)
    done = len(state["history"])
    logger.info("finetune: going on after epoch %d", done)
    return done, state["stopped"]


def _validated(trainer: Trainer, classifier: Classifier, pictures: Pictures) -> HistoryRow:
    (figures,) = trainer.validate(classifier, pictures, verbose=False)
    return {"epoch": 0, "val_loss": figures["val_loss"], "val_accuracy": figures["val_accuracy"]}


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Say whether less or more of a monitored figure is better."""
    return "min" if monitor.endswith("loss") else "max"


def _callbacks(finetune: Finetune, run: Run, folder: RunFolder, *, last_phase: bool) -> list[Callback]:
    stopping = finetune.early_stopping
    mode = mode_of(stopping.monitor)
    # Not ModelCheckpoint(save_last=True): that leaves out the epochs that are not the best (Lightning 2.6).
    always: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(folder.path, folder.best.stem, monitor=stopping.monitor, mode=mode, **always),
        ModelCheckpoint(folder.path, folder.last.stem, **always),
    ]
    if finetune.ema is not None:
        callbacks.append(EMAWeightAveraging(device_of(run), decay=finetune.ema))
    # An earlier phase only prepares the next one: its plateau is no reason to leave that out.
    if last_phase:
        callbacks.append(
            EarlyStopping(stopping.monitor, min_delta=stopping.min_delta, patience=stopping.patience, mode=mode)
        )
    return callbacks


def _trainer(finetune: Finetune, run: Run, folder: RunFolder, callbacks: list[Callback], last_epoch: int) -> Trainer:
    # What Lightning says on info level (which devices there are, a tip of the day) is not about the user's run.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # A loader without workers, srun on the PATH, a folder that is gone on with and modules that are frozen are all
    # meant; the last is Lightning's own affair with torch.
    for message in (
        "does not have many workers",
        "The `srun` command",
        "Checkpoint directory",
        "in eval mode at the start",
        "isinstance.treespec",
    ):
        warnings.filterwarnings("ignore", f".*{message}")
    assert finetune.precision != "auto"  # the stage has chosen
    device = device_of(run).type
    devices: Any = 1 if run.devices == "auto" and device != "cuda" else run.devices
    several = run.nodes > 1 or (devices != 1 and (devices != "auto" or torch.cuda.device_count() > 1))
    return Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=devices,
        num_nodes=run.nodes,
        strategy="ddp" if several else "auto",
        precision=finetune.precision,
        max_epochs=last_epoch,
        accumulate_grad_batches=finetune.accumulate,
        gradient_clip_val=finetune.clip,
        sync_batchnorm=several and device == "cuda",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder.path,
        # The metrics of the validation before the first step are updated again in training.
        inference_mode=False,
    )


def best_epoch(folder: RunFolder, start: HistoryRow, monitor: str) -> tuple[HistoryRow, Weights | None, Weights | None]:
    """Give the best epoch, the start counted as epoch 0.

    Returns:
        Its history row; its weights, None for the start; and where an average is kept, which the weights then are, the
        raw weights beside it.
    """
    state = _load(folder.best)
    best = state["history"][-1]
    sign = 1 if mode_of(monitor) == "min" else -1
    if sign * start[monitor] <= sign * best[monitor]:
        return start, None, None
    raw = state.get("current_model_state")
    return best, _of_model(state["state_dict"]), None if raw is None else _of_model(raw)


def _of_model(weights: Weights) -> Weights:
    """Take the backbone's and head's weights out of the LightningModule's."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
