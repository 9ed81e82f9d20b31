"""Compare the models on the test split, the only time that its labels are read, and say how far each can be trusted.

reads:   data/prepared (images and labels of validation and test), data/features, models/probe, models/baselines,
         models/finetune; for the report also what the stages before found: reports/prepare.json,
         reports/features.json, reports/probe.json, reports/finetune.json, reports/prepare/odd_pictures.csv,
         reports/features/duplicates.csv, reports/features/suspicious_labels.csv, reports/probe/l2_path.csv,
         reports/finetune/history.csv, reports/finetune/ledger.csv
writes:  reports/evaluate.json (the leaderboard with intervals, comparisons and a verdict),
         reports/evaluate/predictions.csv (every test image), reports/evaluate/confusion_probe.csv,
         reports/evaluate/confusion_finetune.csv, reports/evaluate/trust.json (calibration, conformal sets, unusual
         images), reports/evaluate/slices.csv (accuracy by the source's further columns),
         reports/evaluate/suspicious_labels.csv, reports/evaluate/run.json (what was run), models/reference (of
         probe and fine-tuned model, what an export says of its answers: temperature, thresholds, features of training
         images, from which unusual ones are far), and the report of all of it, reports/index.html
params:  evaluate

A model's fit_seconds are those of its training and the choice of its settings, summed over the GPUs or processes that
trained; its seconds those of its own work on the test split. Whatever is fitted here, such as a temperature, is fitted
on validation.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import read_json, write_json, write_report, write_table
from headstart.data.dataset import MANIFEST_COLUMNS, PreparedDataset, Split, data_sha256, manifest_rows, read_labels
from headstart.data_checks.label_errors import find_label_errors
from headstart.data_checks.tables import write_label_errors
from headstart.distributed.process_group import connect
from headstart.evaluation.bootstrap import (
    ECE_BINS,
    LEVEL,
    REPLICATES,
    contributions,
    interval,
    replicate_figures,
    share_interval,
)
from headstart.evaluation.calibration import calibration
from headstart.evaluation.conformal import conformal
from headstart.evaluation.metrics import classification_figures, leaderboard
from headstart.evaluation.ood import ood_thresholds, write_ood_reference
from headstart.evaluation.predictions import ModelPredictions, finetune_predictions, probe_predictions
from headstart.evaluation.significance import compare, corrected, verdict
from headstart.evaluation.slices import Slice, slices
from headstart.probe.temperature import fit_temperature
from headstart.report.page import write_html_report
from headstart.stages.program import main
from headstart.tracking.evaluation import track_evaluation
from headstart.tracking.provenance import provenance

PARAMS = ("evaluate",)
JUDGED: tuple[Split, ...] = ("validation", "test")
READS = (
    paths.PREPARED,
    paths.FEATURES,
    paths.PROBE,
    paths.BASELINES,
    paths.FINETUNE,
    *(paths.report_of(stage) for stage in ("prepare", "features", "probe", "finetune")),
    paths.ODD_IMAGES,
    paths.DUPLICATES,
    paths.FEATURE_LABEL_ERRORS,
    paths.L2_PATH,
    paths.HISTORY,
    paths.LEDGER,
)
WRITES = (
    paths.OOD_REFERENCE,
    paths.PREDICTIONS,
    *paths.CONFUSION.values(),
    paths.TRUST,
    paths.SLICES,
    paths.TEST_LABEL_ERRORS,
    paths.RUN_INFO,
    paths.HTML_REPORT,
)

logger = logging.getLogger(__name__)

Labels = dict[str, NDArray[np.int64]]


def run(params: Params) -> None:
    """Ask all models about the same images, then judge what they said."""
    process_group, prepared = connect(params.run), PreparedDataset.open()
    finetune = finetune_predictions(prepared, JUDGED, params, process_group)
    if process_group.rank:
        return
    models = {**probe_predictions(prepared, JUDGED), "finetune": finetune}
    labels: Labels = {"validation": read_labels("validation"), "test": read_labels("test")}
    images = [row for row in manifest_rows() if row["split"] == "test"]

    _write_predictions(prepared.classes, labels["test"], models, images)
    _write_trust(prepared.classes, labels, models)
    _write_slices(labels["test"], models["finetune"], images)
    _write_suspicious_labels(prepared, labels, models["probe"])
    weights = read_json(paths.FEATURES_INFO).get("weights")
    hashes = {"data_sha256": data_sha256(prepared), "weights_sha256": weights}
    write_json(paths.RUN_INFO, {"params": params.record(), **provenance(), **hashes})
    report = _leaderboard(params, prepared.classes, labels["test"], models, _groups(images))
    write_report("evaluate", report)
    track_evaluation(params.run, prepared, prepared.rows("test"), report)
    page = write_html_report(prepared)
    logger.info("evaluate: %d test images of %d classes\n%s", len(images), len(prepared.classes), leaderboard(report))
    logger.info("%s\n\nthe report: %s", report["verdict"], page)


def _groups(images: list[dict[str, str]]) -> list[str] | None:
    """Return each image's group, where there are groups; one without is a group of its own."""
    return [row["group"] or row["id"] for row in images] if any(row["group"] for row in images) else None


def _leaderboard(
    params: Params,
    classes: list[str],
    labels: NDArray[np.int64],
    models: dict[str, ModelPredictions],
    groups: list[str] | None,
) -> dict[str, Any]:
    """Compute every model's figures with their intervals, compare fine-tuning with each other one, and conclude."""
    top_k = params.evaluate.top_k
    summands = {name: contributions(model.logits["test"], labels, top_k) for name, model in models.items()}
    replicates = replicate_figures(summands, labels, groups, top_k)
    units = len(labels) if groups is None else len(set(groups))
    shares = ("accuracy", f"top_{top_k}_accuracy")
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        figures = classification_figures(model.logits["test"], labels, classes, top_k)
        intervals = {
            key: share_interval(drawn, units) if key in shares else interval(drawn)
            for key, drawn in replicates[name].items()
        }
        times = {"fit_seconds": model.fit_seconds, "seconds": model.seconds}
        found[name] = {**figures, **times, "intervals": intervals}
    right = {name: model.logits["test"].argmax(1) == labels for name, model in models.items()}
    others = [name for name in models if name != "finetune"]
    comparisons = corrected(
        [compare(("finetune", name), right, found, replicates, grouped=groups is not None) for name in others]
    )
    # The rival is chosen by validation: the best of several on test would owe some of its lead to luck there.
    rival = max(range(len(others)), key=lambda i: models[others[i]].val_accuracy)
    return {
        "pictures": len(labels),
        "classes": classes,
        "verdict": verdict(comparisons[rival], found, len(labels)),
        "models": found,
        "comparisons": comparisons,
        "bootstrap": {
            "replicates": REPLICATES,
            "level": LEVEL,
            "units": "pictures" if groups is None else "groups",
        },
    }


def _write_predictions(
    classes: list[str], labels: NDArray[np.int64], models: dict[str, ModelPredictions], images: list[dict[str, str]]
) -> None:
    """Write every test image's predictions, and the tables that DVC draws confusion matrices from."""
    probabilities = {name: softmax(model.logits["test"], axis=1) for name, model in models.items()}
    chosen = {name: each.argmax(1) for name, each in probabilities.items()}
    columns = ["id", "source", "label", *(column for name in models for column in (name, f"{name}_probability"))]
    rows = (
        [row["id"], row["source"], row["label"]]
        + [value for name in models for value in (classes[chosen[name][i]], f"{probabilities[name][i].max():.6f}")]
        for i, row in enumerate(images)
    )
    write_table(paths.PREDICTIONS, columns, rows)
    for name, path in paths.CONFUSION.items():
        pairs = [(classes[label], classes[choice]) for label, choice in zip(labels, chosen[name], strict=True)]
        write_table(path, ("actual", "predicted"), pairs)


def _write_trust(classes: list[str], labels: Labels, models: dict[str, ModelPredictions]) -> None:
    """Write what tells how far probabilities can be trusted, all of it fitted on validation.

    An export says the same of its images, so it gets the models that it may be made of.
    """
    calibrations = {name: calibration(model.logits, labels) for name, model in models.items()}
    exportable = {name: models[name] for name in ("probe", "finetune")}
    sets = {name: conformal(model.logits, labels, classes) for name, model in exportable.items()}
    unusual = {name: ood_thresholds(model.distance, len(model.reference)) for name, model in exportable.items()}
    write_ood_reference(
        {
            name: (
                {
                    "temperature": calibrations[name]["temperature"],
                    "conformal": [{key: each[key] for key in ("method", "level", "threshold")} for each in sets[name]],
                    "out_of_distribution": {key: told for key, told in unusual[name].items() if key != "flagged"},
                },
                model.reference,
            )
            for name, model in exportable.items()
        }
    )
    trust = {"calibration": calibrations, "ece_bins": ECE_BINS}
    write_json(paths.TRUST, trust | {"conformal": sets["finetune"], "out_of_distribution": unusual["finetune"]})


def _write_slices(labels: NDArray[np.int64], model: ModelPredictions, images: list[dict[str, str]]) -> None:
    further = [column for column in images[0] if column not in MANIFEST_COLUMNS]
    columns = {column: [row[column] for row in images] for column in further}
    found = slices(columns, model.logits["test"].argmax(1) == labels, labels, _groups(images))
    write_table(paths.SLICES, Slice._fields, found)


def _write_suspicious_labels(prepared: PreparedDataset, labels: Labels, probe: ModelPredictions) -> None:
    """Write the test labels that the probe, which never saw those images, contradicts with confidence."""
    temperature = fit_temperature(probe.logits["validation"], labels["validation"])
    suspicions = find_label_errors(labels["test"], softmax(probe.logits["test"] / temperature, axis=1))
    write_label_errors(paths.TEST_LABEL_ERRORS, prepared, prepared.rows("test"), labels["test"], suspicions)


if __name__ == "__main__":
    main(run, PARAMS)
