"""Fine-tune backbone and head: CE + Σ λ ‖W‖², early stopping on validation, the best epoch kept.

reads:   data/prepared (train and validation), models/probe (the head that it starts from), the backbone's weights
writes:  models/finetune (the model in timm's local-dir format; with finetune.ema the averaged weights, and raw/ beside
         them), reports/finetune.json, reports/finetune/history.csv
params:  backbone, finetune

Stopped by Ctrl-C, SIGTERM or a crash and started again, it goes on after the last whole epoch, to the same weights as
if it had not been stopped (run.resume). The start counts as epoch 0: the result is never worse than it on validation.
"""

import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from timm.models import save_for_hf
from torch import nn

from headstart.assembly.classifier import Classifier, HistoryRow, fused
from headstart.assembly.data import Pictures, global_batch_size
from headstart.assembly.program import main
from headstart.assembly.run_folder import RunFolder, open_run_folder, run_key
from headstart.assembly.tracking import Tracker
from headstart.assembly.trainer import best_epoch, check_hardware, fit
from headstart.ground import artifacts
from headstart.ground.artifacts import Prepared, read_head
from headstart.ground.params import Backbone, Params
from headstart.libraries.backbone import build, classifier, classifier_name
from headstart.libraries.objective import balanced_weights
from headstart.libraries.param_groups import Group, default_rules, group_parameters, table

PARAMS = ("backbone", "finetune")
READS = (artifacts.PREPARED, artifacts.PROBE)
HISTORY = artifacts.REPORTS / "finetune" / "history.csv"
WRITES = (artifacts.FINETUNE, HISTORY)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Train, then write the best epoch."""
    check_hardware(params.finetune, params.run)
    prepared = Prepared.open()
    key = run_key(
        {"backbone": params.backbone.model_dump(), "finetune": params.finetune.model_dump()},
        [prepared.folder / "manifest.csv", prepared.folder / "dataset.json", artifacts.PROBE / "head.safetensors"],
    )
    cache = artifacts.cache_folder(params.run.cache)
    if rank_zero_only.rank:
        logging.getLogger("headstart").setLevel(logging.WARNING)
        _train(params, prepared, RunFolder(cache / "runs" / key))
        return
    with open_run_folder(cache, key, resume=params.run.resume) as folder:
        _train(params, prepared, folder)


def _train(params: Params, prepared: Prepared, folder: RunFolder) -> None:
    began = time.perf_counter()
    finetune = params.finetune
    model = _starting_model(params.backbone, prepared, head_start=finetune.head_start)
    groups = _groups(model, params)
    pictures = Pictures(prepared, finetune, params.run)
    count, batch_size = len(pictures.train), global_batch_size(len(pictures.train), finetune)
    balanced = finetune.class_weights == "balanced"
    module = Classifier(
        model,
        groups,
        finetune,
        config=prepared.input,
        class_weights=balanced_weights(pictures.train.labels, len(prepared.classes)) if balanced else None,
        batch_size=batch_size,
        steps_per_epoch=count // batch_size,
        freeze_statistics=finetune.batch_norm == "frozen" or (finetune.batch_norm == "auto" and params.backbone.pretrained),
    )
    initial = copy.deepcopy(model.state_dict())
    tracker = None
    if params.run.tracking != "disabled" and not rank_zero_only.rank:
        tracker = Tracker(params.run, folder.tracking, {**params.model_dump(), "groups": table(groups)})
    start = fit(module, pictures, finetune, params.run, folder, tracker.log if tracker else lambda _: None)
    if rank_zero_only.rank:
        return

    history: list[HistoryRow] = [start, *torch.load(folder.last, weights_only=True, mmap=True)["history"]]
    best, weights, raw = best_epoch(folder, start, finetune.early_stopping.monitor)
    with artifacts.replacing(artifacts.FINETUNE) as aside:
        model.load_state_dict(initial if weights is None else weights)
        _save(model, prepared, aside)
        if raw is not None:
            model.load_state_dict(raw)
            _save(model, prepared, aside / "raw")
        if tracker:
            artifacts.write_json(aside / "tracking.json", {"id": tracker.id})
    training_seconds = sum(row["seconds"] for row in history[1:])
    report = {
        "best_epoch": best["epoch"],
        "epochs": len(history) - 1,
        "stopped_early": len(history) - 1 < finetune.epochs,
        "val_loss": best["val_loss"],
        "val_accuracy": best["val_accuracy"],
        "start": {"val_loss": start["val_loss"], "val_accuracy": start["val_accuracy"]},
        "images_per_second": round((len(history) - 1) * (count // batch_size) * batch_size / training_seconds, 1),
        "training_seconds": round(training_seconds, 2),
        "seconds": round(time.perf_counter() - began, 2),
    }
    columns = list(history[-1])
    artifacts.write_table(HISTORY, columns, [[row.get(name, "") for name in columns] for row in history])
    artifacts.write_report("finetune", {**report, "groups": table(groups)})
    if tracker:
        tracker.finish({f"finetune/{name}": value for name, value in report.items() if isinstance(value, int | float)})
    logger.info(
        "finetune: best epoch %d of %d, validation loss %.4f, accuracy %.4f",
        *(report[name] for name in ("best_epoch", "epochs", "val_loss", "val_accuracy")),
    )


def _starting_model(backbone: Backbone, prepared: Prepared, *, head_start: str) -> nn.Module:
    """Build the backbone with timm's own head, which starts from the probe's or from zero."""
    args: dict[str, Any] = {**backbone.args}
    # Only where asked: not every timm model takes them.
    args |= {name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(backbone, name))}
    model = build(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.image_size,
        args=args,
        seed=backbone.seed,
        num_classes=len(prepared.classes),
    )
    if head_start == "probe":
        head, linear = read_head(), classifier(model)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(head.weight))
            linear.bias.copy_(torch.from_numpy(head.bias))
    return model


def _groups(model: nn.Module, params: Params) -> list[Group]:
    finetune = params.finetune
    rules = default_rules(
        model,
        classifier_name(model),
        l2=finetune.l2.model_dump(),
        lr=finetune.lr.model_dump(),
        l2_on_biases_and_norms=finetune.l2_on_biases_and_norms,
    )
    groups = group_parameters(model, rules)
    for row in table(groups):
        logger.info("group %(group)-13s %(tensors)4d tensors %(parameters)11d parameters  λ %(l2).1e  lr %(lr).1e", row)
    if not fused(finetune) and any(group.l2 for group in groups):
        logger.info("the L2 is written out in the loss (%s)", "clipped with it" if finetune.clip else finetune.optimizer)
    return groups


def _save(model: nn.Module, prepared: Prepared, folder: Path) -> None:
    """Write the model as ``timm.create_model("local-dir:folder", pretrained=True)`` loads it."""
    config = {
        "label_names": prepared.classes,
        # A source with as many classes would leave its own names here.
        "pretrained_cfg": {"label_names": prepared.classes, "label_descriptions": None},
    }
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True, data_config=prepared.input)


if __name__ == "__main__":
    main(run, PARAMS)
