"""Fine-tune backbone and head: loss + Σ λ ‖W‖² or another regulariser, early stopping, the best epoch kept.

reads:   data/prepared (train and validation), models/probe (the head that it starts from, and which changes keep the
         label), the backbone's weights
writes:  models/finetune (the model in timm's local-dir format; with finetune.ema the averaged weights, and raw/ beside
         them), reports/finetune.json, reports/finetune/history.csv, reports/finetune/curves.csv (the
         same figures as DVC draws them), reports/finetune/ledger.csv (what the regulariser and the data did to each
         group's weights)
params:  backbone, finetune

Stopped by Ctrl-C, SIGUSR1 or SIGTERM and started again, it resumes at that very step, after a crash at the last
checkpoint (run.save_minutes): to the same weights as if it had not been stopped (run.resume). The start counts as epoch
0: on validation the result is never worse than the start.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from headstart.config.schema import Params, RunConfig
from headstart.core import paths
from headstart.core.io import atomic_write, write_json, write_report, write_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.distributed.connect import connect
from headstart.distributed.process_group import ProcessGroup, device_of
from headstart.models.backbone import weights_sha256
from headstart.models.timm_checkpoint import save_timm
from headstart.stages.program import main
from headstart.tracking.provenance import provenance
from headstart.tracking.wandb_run import Tracker
from headstart.training.autotune import check_compiling, check_precision, precision_of_run
from headstart.training.batch_size import accumulation_on_cpu, check_smallest_part, room_for_images
from headstart.training.checkpoint import CHECKPOINT_FORMAT, RunDir, open_run_dir, run_key
from headstart.training.datamodule import FineTuneDataModule
from headstart.training.figures import HistoryRow
from headstart.training.losses import loss_options
from headstart.training.module import FineTuner
from headstart.training.phases import TrainingPlan, describe, starting_model
from headstart.training.regularization.ledger import COLUMNS, LedgerRow, ledger_table, with_ledger
from headstart.training.regularization.penalty import INERT
from headstart.training.trainer import best_epoch, fit, load_history

PARAMS = ("backbone", "finetune")
READS = (paths.PREPARED, paths.PROBE)
WRITES = (paths.FINETUNE, paths.HISTORY, paths.LEDGER, paths.CURVES)

LOSSES = {"train_loss": "training", "val_loss": "validation", "val_refined_loss": "validation, refined"}
"""What is drawn in the chart of the loss, with the images that it is of."""

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Train, then write the best epoch."""
    train(params)


def train(params: Params, stop_after: int | None = None, observers: Sequence[Callback] = ()) -> RunDir:
    """Train as ``run`` does; with ``stop_after`` for so many epochs, and write nothing but the state to go on from.

    ``observers`` are called by the Trainer and only look on. Returns the folder of the run's checkpoints.
    """
    check_precision(params.finetune.precision, device_of(params.run))
    process_group = connect(params.run)
    prepared = PreparedDataset.open()
    model, plan = starting_model(
        params.backbone, params.finetune, in_chans=prepared.input["input_size"][0], **prepared.training_size()
    )
    backbone = params.backbone.model_dump(exclude={"image_size"})  # the dataset has what it stands for
    content = {"backbone": backbone, "finetune": plan.finetune.model_dump()}
    files = [paths.DATASET, paths.HEADS, paths.HEADS_INFO]
    key, cache = run_key(content, files), paths.cache_folder(params.run.cache)
    earlier = cache / "runs" / run_key(content, files, CHECKPOINT_FORMAT - 1)
    if process_group.rank == 0 and earlier.exists() and not (cache / "runs" / key).exists():
        logger.info("finetune: begins anew, since %s is of an earlier version: delete that folder", earlier)
    with contextlib.ExitStack() as opened:
        run_dir = process_group.broadcast_from_rank_zero(
            lambda: opened.enter_context(open_run_dir(cache, key, resume=params.run.resume))
        )
        _train(
            model,
            plan,
            prepared,
            params,
            run_dir=run_dir,
            process_group=process_group,
            stop_after=stop_after,
            observers=observers,
        )
        return run_dir


def _train(
    model: nn.Module,
    plan: TrainingPlan,
    prepared: PreparedDataset,
    params: Params,
    *,
    run_dir: RunDir,
    process_group: ProcessGroup,
    stop_after: int | None,
    observers: Sequence[Callback],
) -> None:
    began = time.perf_counter()
    images = FineTuneDataModule(prepared, plan.finetune, params.run, process_group)
    initial = copy.deepcopy(model.state_dict())
    plan = _choose_for_machine(model, plan, prepared, params, run_dir=run_dir, process_group=process_group)
    module = _module(model, plan, prepared, params.run, process_group)
    groups = describe(plan)
    _warn_what_depends_on_processes(module, params, process_group)
    tracker = None
    if params.run.tracking != "disabled" and process_group.rank == 0:
        hashes = {"data_sha256": prepared.sha256, "weights_sha256": weights_sha256(model)}
        of_bands = {"bands": prepared.bands.record()} if prepared.bands else {}
        config = {**params.record(), "groups": groups, **hashes, **of_bands, **provenance()}
        tracker = Tracker(params.run, run_dir.tracking, config)
    log_history = tracker.log if tracker else lambda _history, _curve: None
    start = fit(
        module,
        images,
        run=params.run,
        process_group=process_group,
        run_dir=run_dir,
        log_history=log_history,
        stop_after=stop_after,
        observers=observers,
    )
    if process_group.rank or stop_after is not None:
        return

    best, weights, raw = best_epoch(run_dir, start, plan.monitor)
    with atomic_write(paths.FINETUNE) as partial:
        save_timm(module.model, initial if weights is None else weights, prepared, partial, plan.target)
        if raw is not None:
            save_timm(module.model, raw, prepared, partial / paths.RAW_MODEL.name, plan.target)
        if tracker:
            write_json(partial / paths.TRACKED_RUN.name, {"id": tracker.id})
    epochs, ledger, curve = load_history(run_dir)
    log_history(with_ledger(epochs, ledger), curve)
    _write_tables(history := [start, *epochs], ledger, plan)
    shown = best["epoch"] or len(epochs)  # the start has no row
    last_rows = [row for row in ledger if row["epoch"] == shown]
    report: dict[str, Any] = _figures(history, best, plan)
    report |= {"processes": process_group.world, "device": process_group.device.type}
    seconds = round(time.perf_counter() - began, 2)
    report |= {"stopped_early": len(history) - 1 < plan.finetune.epochs, "seconds": seconds}
    chosen = [choice._asdict() for choice in plan.choices]
    about = {
        "monitor": plan.monitor.name,
        "precision": plan.finetune.precision,
        "chosen": chosen,
        "groups": groups,
        "ledger": last_rows,
    }
    write_report("finetune", report | about)
    if tracker:
        tracker.finish({f"finetune/{name}": value for name, value in report.items()})
    _log_result(report, plan.told(best), shown, last_rows)
    _log_inert(groups, last_rows)


def _choose_for_machine(
    model: nn.Module,
    plan: TrainingPlan,
    prepared: PreparedDataset,
    params: Params,
    *,
    run_dir: RunDir,
    process_group: ProcessGroup,
) -> TrainingPlan:
    """Return the plan with the precision, and the accumulation steps that a CPU's memory needs."""
    world, trains_statistics = process_group.world, plan.trains_statistics(model)
    if world == 1 or process_group.device.type == "cpu":  # several GPUs share their statistics
        check_smallest_part(model, prepared.input, plan, world, trains_statistics=trains_statistics)
    room = room_for_images(model, prepared.input, plan, process_group)
    precision = process_group.broadcast_from_rank_zero(
        lambda: precision_of_run(
            model, prepared.input, plan.finetune, params.run, run_dir, most=room.images, steps=plan.steps
        )
    )
    plan = plan.with_choices(precision=precision)
    if precision == "bf16-mixed":
        room = room_for_images(model, prepared.input, plan, process_group, bf16=True)
    return plan.with_choices(accumulate=accumulation_on_cpu(room, plan, world, trains_statistics=trains_statistics))


def _module(
    model: nn.Module, plan: TrainingPlan, prepared: PreparedDataset, run_config: RunConfig, process_group: ProcessGroup
) -> FineTuner:
    """Build the module as it is before the first step."""
    on_gpu, finetune = process_group.device.type == "cuda", plan.finetune
    if process_group.world > 1 and on_gpu and not plan.freeze_statistics:
        # Not Lightning's sync_batchnorm: torch's conversion loses the activations within timm's BatchNormAct2d.
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    options = loss_options(finetune, plan.target, read_values("train", prepared.folder))
    module = FineTuner(model, plan, image_config=prepared.input, options=options)
    if finetune.compile:
        process_group.run_on_rank_zero(lambda: check_compiling(model, prepared.input, finetune, run_config, plan.steps))
        model.compile()
    return module


def _log_result(report: dict[str, Any], told: str, shown: float, rows: list[LedgerRow]) -> None:
    which = "best" if report["best_epoch"] else "last"
    logger.info("the trained weights after epoch %d, the %s:\n%s", shown, which, ledger_table(rows))
    logger.info("finetune: best epoch %d of %d, %s", report["best_epoch"], report["epochs"], told)


def _log_inert(groups: Sequence[Mapping[str, Any]], rows: Sequence[LedgerRow]) -> None:
    """Name each λ that had no effect and could not be warned of before: under Adam no formula foretells it."""
    shrunk = {row["group"]: float(row["total_shrink"] or 0) for row in rows}
    for group in groups:
        name, l2 = group["group"], group["l2"]
        if l2 and group["expected_shrink"] is None and shrunk.get(name, INERT) < INERT:
            taken = "finetune.l2.%s: %.1e had no effect to speak of: it took %.2g %% off the weights"
            logger.info(taken, name, l2, 100 * shrunk[name])


def _warn_what_depends_on_processes(module: FineTuner, params: Params, process_group: ProcessGroup) -> None:
    """Warn where several processes train to other weights than one, by more than the order of sums."""
    precision = module.plan.finetune.precision
    reasons = {
        "each process has its own BatchNorm statistics (finetune.batch_norm: frozen)": module.plan.trains_statistics(
            module
        )
        and process_group.device.type == "cpu",
        "what drops out follows from the process": params.backbone.drop_rate or params.backbone.drop_path_rate,
        f"{precision} rounds coarsely": precision != "32-true",
    }
    if process_group.world > 1 and any(reasons.values()):
        given = "; ".join(reason for reason, holds in reasons.items() if holds)
        logger.warning("on %d processes the weights will differ from those of one: %s", process_group.world, given)


def _write_tables(history: list[HistoryRow], ledger: list[LedgerRow], plan: TrainingPlan) -> None:
    columns = list(history[-1])
    write_table(paths.HISTORY, columns, [[row.get(name, "") for name in columns] for row in history])
    rows = [["" if row[name] is None else row[name] for name in COLUMNS] for row in ledger]
    write_table(paths.LEDGER, COLUMNS, rows)
    curves = {name: (plan.target.words.loss, images) for name, images in LOSSES.items()}
    curves |= {name: (each.title, "validation") for name, each in plan.figures.items() if name not in LOSSES}
    drawn = ((row, name) for name in curves for row in history if row.get(name) is not None)
    points = [(row["epoch"], *curves[name], row[name]) for row, name in drawn]
    write_table(paths.CURVES, ("epoch", "chart", "images", "value"), points)


def _figures(history: list[HistoryRow], best: HistoryRow, plan: TrainingPlan) -> dict[str, Any]:
    """Return the report's figures of a history."""
    images_an_epoch = plan.steps_per_epoch * plan.batch_size
    seconds, training = (sum(row[name] for row in history[1:]) for name in ("seconds", "train_seconds"))
    return {
        "best_epoch": best["epoch"],
        "epochs": len(history) - 1,
        **{name: best[name] for name in plan.figures},
        **{f"start_{name}": history[0][name] for name in plan.figures},
        "images_per_second": round((len(history) - 1) * images_an_epoch / training, 1),
        "training_seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    main(run, PARAMS)
