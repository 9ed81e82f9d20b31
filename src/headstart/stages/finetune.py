"""Fine-tune backbone and head: CE + Σ λ ‖W‖² or another regulariser, early stopping, the best epoch kept.

reads:   data/prepared (train and validation), models/probe (the head that it starts from), the backbone's weights
writes:  models/finetune (the model in timm's local-dir format; with finetune.ema the averaged weights, and raw/ beside
         them), reports/finetune.json, reports/finetune/history.csv, reports/finetune/ledger.csv (what the
         regulariser and the data did to each group's weights)
params:  backbone, finetune

Stopped by Ctrl-C, SIGUSR1 or SIGTERM and started again, it goes on at that very step, after a crash at the last state
that was saved (run.save_minutes): to the same weights as if it had not been stopped (run.resume). The start counts as
epoch 0: the result is never worse than it on validation.
"""

import contextlib
import copy
import logging
import time
from typing import Any

from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import replacing, write_json, write_report, write_table
from headstart.data.dataset import Prepared, data_sha256
from headstart.distributed.process_group import Ranks, connect, device_of
from headstart.models.backbone import BATCH_NORM, weights_sha256
from headstart.models.timm_checkpoint import save_timm
from headstart.stages.program import main
from headstart.tracking.provenance import provenance
from headstart.tracking.wandb_run import Tracker
from headstart.training.autotune import check_compiling, check_precision, precision_of_run
from headstart.training.checkpoint import RunFolder, open_run_folder, run_key
from headstart.training.datamodule import Pictures, global_batch_size
from headstart.training.losses import balanced_weights
from headstart.training.module import Classifier, HistoryRow
from headstart.training.phases import anchored, describe, groups_of, phases_of, starting_model
from headstart.training.regularization.ledger import COLUMNS, Row, with_curves
from headstart.training.regularization.ledger import table as ledger_table
from headstart.training.trainer import best_epoch, fit, saved_history

PARAMS = ("backbone", "finetune")
READS = (paths.PREPARED, paths.PROBE)
WRITES = (paths.FINETUNE, paths.HISTORY, paths.LEDGER)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Train, then write the best epoch."""
    check_precision(params.finetune.precision, device_of(params.run))
    ranks = connect(params.run)
    prepared = Prepared.open()
    key = run_key(
        {"backbone": params.backbone.model_dump(), "finetune": params.finetune.model_dump()},
        [paths.MANIFEST, paths.DATASET, paths.HEADS],
    )
    cache = paths.cache_folder(params.run.cache)
    with contextlib.ExitStack() as opened:
        folder = ranks.from_rank_0(lambda: opened.enter_context(open_run_folder(cache, key, resume=params.run.resume)))
        _train(params, prepared, folder, ranks)


def _train(params: Params, prepared: Prepared, folder: RunFolder, ranks: Ranks) -> None:
    began = time.perf_counter()
    model = starting_model(params.backbone, params.finetune, len(prepared.classes))
    initial = copy.deepcopy(model.state_dict())
    precision = ranks.from_rank_0(lambda: precision_of_run(model, prepared.input, params.finetune, params.run, folder))
    params = params.model_copy(update={"finetune": params.finetune.model_copy(update={"precision": precision})})
    pictures = Pictures(prepared, params.finetune, params.run, ranks)
    module = _module(params, prepared, pictures, model, ranks)
    groups = describe(module.groups, module.phases, params.finetune, module.steps_per_epoch)
    _say_what_depends_on_ranks(module, params, ranks)
    tracker = None
    if params.run.tracking != "disabled" and ranks.rank == 0:
        tracker = Tracker(params.run, folder.tracking, _config(params, prepared, model, groups))
    hand_over = tracker.log if tracker else lambda _history, _curve: None
    start = fit(
        module,
        pictures,
        finetune=params.finetune,
        run=params.run,
        ranks=ranks,
        folder=folder,
        hand_over=hand_over,
    )
    if ranks.rank:
        return

    best, weights, raw = best_epoch(folder, start, params.finetune.early_stopping.monitor)
    with replacing(paths.FINETUNE) as aside:
        save_timm(module.model, initial if weights is None else weights, prepared, aside)
        if raw is not None:
            save_timm(module.model, raw, prepared, aside / paths.RAW_MODEL.name)
        if tracker:
            write_json(aside / paths.TRACKED_RUN.name, {"id": tracker.id})
    epochs, ledger, steps = saved_history(folder)
    hand_over(with_curves(epochs, ledger), steps)
    _write_tables(history := [start, *epochs], ledger)
    shown = best["epoch"] or len(epochs)  # the start has no row
    last_rows = [row for row in ledger if row["epoch"] == shown]
    report: dict[str, Any] = _figures(history, best, pictures_an_epoch=module.steps_per_epoch * module.batch_size)
    report |= {"processes": ranks.world, "device": ranks.device.type}
    seconds = round(time.perf_counter() - began, 2)
    report |= {"stopped_early": len(history) - 1 < params.finetune.epochs, "seconds": seconds}
    write_report("finetune", {**report, "precision": precision, "groups": groups, "ledger": last_rows})
    if tracker:
        tracker.finish({f"finetune/{name}": value for name, value in report.items()})
    _say_result(report, shown, last_rows)


def _say_result(report: dict[str, Any], shown: float, rows: list[Row]) -> None:
    which = "best" if report["best_epoch"] else "last"
    logger.info("the trained weights after epoch %d, the %s:\n%s", shown, which, ledger_table(rows))
    logger.info(
        "finetune: best epoch %d of %d, validation loss %.4f, accuracy %.4f",
        *(report[name] for name in ("best_epoch", "epochs", "val_loss", "val_accuracy")),
    )


def _config(params: Params, prepared: Prepared, model: nn.Module, groups: Any) -> dict[str, Any]:
    """Give what the tracked run shows as its config: all of params.yaml, and what it was made with."""
    hashes = {"data_sha256": data_sha256(prepared), "weights_sha256": weights_sha256(model)}
    return {**params.record(), "groups": groups, **hashes, **provenance()}


def _say_what_depends_on_ranks(module: Classifier, params: Params, ranks: Ranks) -> None:
    """Warn where several processes train to other weights than one, by more than the order of sums."""
    trains_statistics = not module.freeze_statistics and any(isinstance(part, BATCH_NORM) for part in module.modules())
    reasons = {
        "each process has its own BatchNorm statistics (finetune.batch_norm: frozen)": trains_statistics
        and ranks.device.type == "cpu",
        "what drops out follows from the process": params.backbone.drop_rate or params.backbone.drop_path_rate,
        f"{params.finetune.precision} rounds coarsely": params.finetune.precision != "32-true",
    }
    if ranks.world > 1 and any(reasons.values()):
        given = "; ".join(reason for reason, holds in reasons.items() if holds)
        logger.warning("on %d processes the weights will differ from those of one: %s", ranks.world, given)


def _write_tables(history: list[HistoryRow], ledger: list[Row]) -> None:
    columns = list(history[-1])
    write_table(paths.HISTORY, columns, [[row.get(name, "") for name in columns] for row in history])
    rows = [["" if row[name] is None else row[name] for name in COLUMNS] for row in ledger]
    write_table(paths.LEDGER, COLUMNS, rows)


def _figures(history: list[HistoryRow], best: HistoryRow, *, pictures_an_epoch: int) -> dict[str, int | float]:
    """Sum a history up for the report."""
    seconds, training = (sum(row[name] for row in history[1:]) for name in ("seconds", "train_seconds"))
    return {
        "best_epoch": best["epoch"],
        "epochs": len(history) - 1,
        "val_loss": best["val_loss"],
        "val_accuracy": best["val_accuracy"],
        "start_val_loss": history[0]["val_loss"],
        "start_val_accuracy": history[0]["val_accuracy"],
        "images_per_second": round((len(history) - 1) * pictures_an_epoch / training, 1),
        "training_seconds": round(seconds, 2),
    }


def _module(params: Params, prepared: Prepared, pictures: Pictures, model: nn.Module, ranks: Ranks) -> Classifier:
    """Build what is trained, as it is before the first step."""
    finetune = params.finetune
    weights = None
    if finetune.class_weights == "balanced":
        weights = balanced_weights(pictures.train.labels, len(prepared.classes))
    batch_size = global_batch_size(len(pictures.train), finetune)
    by_default = finetune.batch_norm == "auto" and params.backbone.pretrained and finetune.recipe != "full"
    frozen = finetune.batch_norm == "frozen" or by_default
    if ranks.world > 1 and ranks.device.type == "cuda" and not frozen:
        # Not Lightning's sync_batchnorm: torch's conversion loses the activations within timm's BatchNormAct2d.
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    classifier = Classifier(
        model,
        groups_of(model, finetune),
        finetune,
        phases=phases_of(model, finetune),
        anchored=anchored(model) if finetune.l2.kind == "l2_sp" else set(),
        config=prepared.input,
        class_weights=weights,
        batch_size=batch_size,
        steps_per_epoch=len(pictures.train) // batch_size,
        freeze_statistics=frozen,
    )
    if finetune.compile:
        steps = finetune.epochs * classifier.steps_per_epoch
        ranks.on_rank_0(lambda: check_compiling(model, prepared.input, finetune, params.run, steps))
        model.compile()
    return classifier


if __name__ == "__main__":
    main(run, PARAMS)
