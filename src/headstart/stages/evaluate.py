"""Compare the models on the test split, the only time that its labels are read, and measure how far to trust each.

reads:   data/prepared (images and labels of validation and test), data/features, models/probe, models/baselines,
         models/finetune; for the report also the figures and tables of the stages before: reports/prepare.json,
         reports/features.json, reports/probe.json, reports/finetune.json, reports/prepare/odd_pictures.csv,
         reports/features/duplicates.csv, reports/features/suspicious_labels.csv, reports/probe/l2_path.csv,
         reports/finetune/history.csv, reports/finetune/ledger.csv
writes:  reports/evaluate.json (the leaderboard with intervals, comparisons and a verdict),
         reports/evaluate/predictions.csv (every test image), reports/evaluate/confusion_probe.csv,
         reports/evaluate/confusion_finetune.csv, reports/evaluate/trust.json (calibration, prediction sets,
         out-of-distribution thresholds), reports/evaluate/slices.csv (the mean score by the source's metadata columns),
         reports/evaluate/suspicious_labels.csv, reports/evaluate/run.json (params and versions of this run),
         models/reference (of probe and fine-tuned model, for an export: temperature, thresholds, and features of
         training images to measure out-of-distribution distances to), and the HTML report of all of it,
         reports/index.html
params:  evaluate

Where it helps on validation, the row finetune_tta has the mean over each image and its mirror image. A model's
fit_seconds are those of its training and the choice of its settings, summed over the GPUs or processes that trained;
its seconds are those of its own inference on the test split. Whatever is fitted here, such as a temperature, is fitted
on validation.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.blocks import row_blocks
from headstart.core.io import read_json, temporary_folder, write_json, write_report, write_table
from headstart.data.dataset import PreparedDataset, read_groups, read_values
from headstart.data.manifest import manifest_rows
from headstart.data_checks.tables import write_label_errors
from headstart.distributed.connect import connect
from headstart.evaluation.bootstrap import assign_units, strata_of
from headstart.evaluation.leaderboard import compute_leaderboard, format_leaderboard
from headstart.evaluation.predictions import (
    ModelPredictions,
    finetune_predictions,
    probe_predictions,
    write_predictions,
)
from headstart.evaluation.slices import compute_slices, read_metadata, slice_columns
from headstart.evaluation.trust import write_trust
from headstart.report.page import write_html_report
from headstart.stages.program import main
from headstart.targets.target import Target
from headstart.tracking.evaluation import track_evaluation
from headstart.tracking.provenance import provenance

PARAMS = ("evaluate",)
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


def run(params: Params) -> None:
    """Run every model on the same images, then write all that follows from their predictions."""
    process_group, prepared = connect(params.run), PreparedDataset.open()
    target = prepared.target.ranked_within(params.evaluate.top_k)
    with temporary_folder(paths.EVALUATED) if not process_group.rank else nullcontext(paths.EVALUATED) as folder:
        finetune = finetune_predictions(prepared, params, process_group, folder)
        if not process_group.rank:
            _write(params, prepared, target, {**probe_predictions(prepared, target, folder), **finetune})


def _write(params: Params, prepared: PreparedDataset, target: Target, models: dict[str, ModelPredictions]) -> None:
    """Write what follows from the models' predictions: figures, tables, what an export needs, and the report."""
    values = {"validation": read_values("validation"), "test": read_values("test")}
    test_values = values["test"]
    units = assign_units(strata_of(target.strata(test_values), len(test_values)), read_groups("test"))
    fitted = {
        name: model.target.fit(model.outputs["validation"], values["validation"]) for name, model in models.items()
    }

    write_predictions(target, values, models, fitted, _test_images())
    write_trust(models, values, fitted, units)
    finetune, sign = models["finetune"], target.measures[target.scored].sign
    scores = finetune.target.scores(finetune.outputs["test"], test_values, fitted["finetune"])
    slices = compute_slices(read_metadata(_test_images()), scores, units, sign)
    write_table(paths.SLICES, slice_columns(target.scored), slices)
    # The probe never saw the test images, so labels that it contradicts with confidence may be wrong.
    probe = models["probe"].outputs["test"]
    expected = (target.expected(probe[rows], fitted["probe"]) for rows in row_blocks(probe.shape))
    errors = target.find_errors(test_values, expected)
    write_label_errors(paths.TEST_LABEL_ERRORS, prepared, prepared.rows("test"), errors)
    weights = read_json(paths.FEATURES_INFO).get("weights")
    hashes = {"data_sha256": prepared.sha256, "weights_sha256": weights}
    write_json(paths.RUN_INFO, {"params": params.record(), **provenance(), **hashes})

    report = compute_leaderboard(models, test_values, target, fitted, units)
    write_report("evaluate", report)
    track_evaluation(params.run, prepared, prepared.rows("test"), report)
    page = write_html_report(prepared)
    words = target.words
    size = len(test_values), len(target.names), words.noun if len(target.names) == 1 else words.nouns
    logger.info("evaluate: %d test images of %d %s\n%s", *size, format_leaderboard(report))
    logger.info("%s\n\nthe report: %s", report["verdict"], page)


def _test_images() -> Iterator[dict[str, str]]:
    return (row for row in manifest_rows() if row["split"] == "test")


if __name__ == "__main__":
    main(run, PARAMS)
