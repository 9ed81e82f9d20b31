"""Fit the linear head on the cached features, loss + λ‖W‖² along a path of λ, and the baselines to compare it with.

reads:   data/prepared (labels of train and validation), data/features (with the backbone's own classifier, for
         probe.class_map)
writes:  models/probe (the heads along the path, which has the lowest validation loss, and in augmentation.json which
         flips and turns of an image keep its label: what finetune.augment's auto follows), models/baselines (the
         outputs of probe.heads and zero_shot for the images outside train), reports/probe.json (the chosen head,
         its figures on validation and times, and what was skipped and why), reports/probe/l2_path.csv (of numbers with
         generalised cross-validation)
params:  probe

The chosen head is the baseline that fine-tuning has to beat. Fine-tuning starts from it, or from the one at its own λ
where that is larger. Where the features are many, all ranks share the work along the path, each with its own part of
the rows; else they leave it to the first. The baselines are in a folder of their own, so that a change of probe.heads
does not train again.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import Params, RunConfig
from headstart.core import paths
from headstart.core.io import write_json, write_report, write_table
from headstart.core.run_state import rank_of_process
from headstart.data.dataset import PreparedDataset, read_values
from headstart.features.cache import read_changed_features, read_features
from headstart.models.head import Head, read_head, write_heads
from headstart.probe.augmentation import judge_changes
from headstart.probe.logistic import LinearSolver, RowSums
from headstart.probe.outputs import write_baselines
from headstart.probe.sklearn_heads import HEADS, LabelledFeatures, fit_head, reason_to_leave_out, reason_to_skip
from headstart.probe.zero_shot import zero_shot_classifier
from headstart.stages.program import main
from headstart.targets.target import Target, validation_figures

PARAMS = ("probe",)
READS = (paths.PREPARED, paths.FEATURES)
WRITES = (paths.PROBE, paths.BASELINES, paths.L2_PATH)

PATH_TOLERANCE = 1e-6
"""Of ``linear_path``, where it only finds the best λ; the head at that is fitted to the solver's own."""
WORTH_TORCH = 10**10
"""Images x features x outputs from which the path takes longer than the import of torch, and all ranks solve it."""
SOLVER_BYTES = 2**31
"""GPU memory that the solver takes beside what grows with the images."""

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Fit the heads along the path and choose λ on validation, then fit the baselines."""
    began = time.perf_counter()
    prepared, probe = PreparedDataset.open(), params.probe
    rows, target = prepared.rows("train"), prepared.target
    width = read_features(rows[:0]).shape[1]
    work = len(rows) * width * target.outputs
    if work < WORTH_TORCH and rank_of_process():
        return
    zero_shot = None if probe.class_map is None else zero_shot_classifier(probe.class_map, target)
    validation = LabelledFeatures(read_features(prepared.rows("validation")), read_values("validation"))
    names, skipped = list[str](), dict[str, str]()
    unknown = int(np.isnan(read_values("train")).any(axis=0).sum())
    for name in HEADS if probe.heads == "auto" else probe.heads:
        reason = reason_to_skip(name, target)
        if probe.heads == "auto" and reason is None:
            reason = reason_to_leave_out(name, len(rows), width, target.outputs, unknown)
        if reason is None:
            names.append(name)
        else:
            skipped[name] = reason
            logger.info("%-9s  skipped: %s", name, reason)
    with _solver(rows, target, params.run, several=work >= WORTH_TORCH) as solver:
        if solver is None:
            return
        report = _fit_linear_heads(params, solver, validation, target)
        ridge = list(solver.ridge(probe.l2)) if "ridge" in names else []
    del solver
    train = LabelledFeatures(read_features(rows), read_values("train"))
    report["augmentation"] = _judge_changes(prepared, validation)
    with write_baselines(prepared) as outputs:
        for name in names:
            began_head = time.perf_counter()
            head = fit_head(name, train, validation, target, ridge)
            outputs.add(name, head.settings, head.predict, fit_seconds=time.perf_counter() - began_head)
        if zero_shot is not None:
            outputs.add("zero_shot", *zero_shot, fit_seconds=0.0)
    report |= {"heads": outputs.figures, "skipped": skipped, "seconds": round(time.perf_counter() - began, 2)}
    write_report("probe", report)
    measure = next(iter(target.measures))
    title, score = target.measures[measure].title, report[f"val_{measure}"]
    logger.info("probe: λ %.1e chosen, validation %s %.4f", report["l2"], title, score)


def _fit_linear_heads(
    params: Params, solver: LinearSolver, validation: LabelledFeatures, target: Target
) -> dict[str, Any]:
    """Fit the heads along the path, write them and their table, and return the chosen one's figures."""
    began = time.perf_counter()
    heads, table = list[Head](), list[dict[str, float]]()

    def figures(head: Head) -> dict[str, float]:
        found = {"l2": head.l2, "train_loss": solver.loss}
        found["squared_norm"] = float((head.weight.astype(np.float64) ** 2).sum())
        found |= validation_figures(target, head.logits(validation.features), validation.values)
        return found if solver.gcv is None else found | {"gcv": solver.gcv}

    for head in map(_head, solver.path(params.probe.l2, tolerance=PATH_TOLERANCE)):
        heads.append(head)
        table.append(figures(head))
        logger.info("λ %.1e  %s", head.l2, "  ".join(f"{name} {table[-1][name]:.4f}" for name in [*table[-1]][1:]))

    best = int(np.argmin([row["val_loss"] for row in table]))
    start = heads[best].weight, heads[best].bias
    (heads[best],) = map(_head, solver.path([heads[best].l2], start=start))
    table[best] = figures(heads[best])
    if len(table) > 1 and best in {0, len(table) - 1}:
        logger.info("probe: the best λ, %.1e, is at the end of the path: extend probe.l2 beyond it", heads[best].l2)
    outputs = heads[best].logits(validation.features)
    write_heads(heads, best, target.residual_quantiles(outputs, validation.values))
    # DVC's plots have linear axes only.
    rows = [(math.log10(row["l2"]), *row.values()) for row in table]
    write_table(paths.L2_PATH, ("log10_l2", *table[0]), rows)
    report: dict[str, Any] = {name: figure for name, figure in table[best].items() if name != "squared_norm"}
    if solver.gcv is not None:
        report["gcv_l2"] = min(table, key=lambda row: row["gcv"])["l2"]
    return report | {"fit_seconds": round(time.perf_counter() - began, 3)}


def _head(solution: tuple[float, NDArray[np.float64], NDArray[np.float64]]) -> Head:
    l2, weight, bias = solution
    return Head(weight.astype(np.float32), bias.astype(np.float32), l2)


@contextmanager
def _solver(rows: NDArray[np.int64], target: Target, run: RunConfig, *, several: bool) -> Iterator[LinearSolver | None]:
    """Yield the solver for train's rows; with ``several`` on the devices of all ranks, and None on all but the first.

    Each rank reads only its part of the rows. They are on the GPUs if all have room.
    """
    if not several:
        yield LinearSolver(RowSums(read_features(rows), read_values("train"), target), target)
        return
    import torch  # noqa: PLC0415  (takes seconds, as do the others)

    from headstart.distributed.connect import connect  # noqa: PLC0415
    from headstart.distributed.heartbeat import watch_heartbeats  # noqa: PLC0415
    from headstart.probe.ranks import SharedRows  # noqa: PLC0415

    process_group = connect(run)
    with watch_heartbeats(process_group.rank, process_group.world, run.timeout_minutes) as watchdog:
        parts = np.array_split(np.arange(len(rows)), process_group.world)
        part = parts[process_group.rank]
        features, values = read_features(rows[part]), read_values("train")[part]
        needed = 4 * len(part) * (2 * features.shape[1] + target.outputs) + SOLVER_BYTES
        on_gpu = process_group.device.type == "cuda" and torch.cuda.mem_get_info()[0] >= needed
        device = process_group.device if min(process_group.gather(torch.tensor(on_gpu))) else "cpu"
        torch.set_float32_matmul_precision("high")  # TF32 where float32 only gives the direction of a step
        placed = torch.as_tensor(features, device=device), torch.as_tensor(values, device=device)
        shared = SharedRows(RowSums(*placed, target), process_group, watchdog)
        if process_group.rank:
            shared.serve()
            yield None
        else:
            yield LinearSolver(shared, target)
            shared.release()


def _judge_changes(prepared: PreparedDataset, validation: LabelledFeatures) -> dict[str, Any]:
    """Judge the changes that the features stage tried, and write the verdicts."""
    rows, changed = read_changed_features()
    tried = np.searchsorted(prepared.rows("validation"), rows)
    features, values = validation.features[tried], validation.values[tried]
    evidence = judge_changes(read_head(), features, changed, values, prepared.target)
    write_json(paths.AUGMENTATION, evidence)
    return evidence


if __name__ == "__main__":
    main(run, PARAMS)
