"""Write the model as a bundle, once every format was shown to compute what was trained.

reads:   data/prepared and the files of its validation images (prepare.path), models/probe, models/finetune; for the
         model card reports/evaluate.json, reports/evaluate/trust.json and reports/evaluate/run.json; temperature,
         conformal levels and features of training images in models/reference
writes:  export (the bundle: model.safetensors and config.json for timm, model.onnx and the other formats of
         export.formats, reference.npy, README.md, LICENSE, manifest.json), reports/export.json
params:  export, backbone, prepare.source, prepare.path

Each format's outputs on real images are compared with the trained model's, all on the CPU and so with the same
arithmetic, and so are the ways in which an image's file becomes the model's input. A format that differs by more than
the bounds allow, or that this model can't be converted to, is left out and named, and the stage fails. `headstart
export-checkpoint` does the same with the weights of any checkpoint.
"""

import logging
import time
from pathlib import Path

from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import existing, read_json, write_report
from headstart.data.dataset import PreparedDataset
from headstart.data.sources import open_source
from headstart.distributed.process_group import use_cores
from headstart.evaluation.ood import read_ood_reference
from headstart.export.bundle_writer import check_complete, check_config, write_bundle
from headstart.export.model_card import ModelCardInfo
from headstart.models.backbone import backbone_for, set_head
from headstart.models.head import read_head
from headstart.models.timm_checkpoint import load_timm, read_target
from headstart.stages.program import main
from headstart.targets.target import Target
from headstart.tracking.lineage import track_model

SOURCE = (
    "source",
    "path",
    "columns",
    "target",
    "target_columns",
    "label_separator",
    "grades",
    "label_case",
    "band_files",
)
PARAMS = ("export", "backbone", *(f"prepare.{key}" for key in SOURCE))
READS: tuple[str | Path, ...] = (
    paths.PREPARED,
    "${prepare.path}",
    paths.PROBE,
    paths.FINETUNE,
    paths.OOD_REFERENCE,
    paths.report_of("evaluate"),
    paths.TRUST,
    paths.RUN_INFO,
)
WRITES = (paths.EXPORT,)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write the bundle and ``reports/export.json``; raises UserError where a format failed, and so is left out."""
    began = time.perf_counter()
    use_cores(1)
    prepared = PreparedDataset.open()
    name, run_info = params.export.from_, read_json(paths.RUN_INFO)
    card_info = ModelCardInfo(
        model=name,
        hashes={"data and splits": run_info["data_sha256"], "pretrained weights": run_info["weights_sha256"]},
        evaluation=read_json(paths.report_of("evaluate")),
        calibration=read_json(paths.TRUST)["calibration"].get(name),
    )
    (model, target), calibration = _load_model(params, prepared), read_ood_reference(name)
    source = open_source(params.prepare, params.run)
    formats, preprocessing, failed = write_bundle(
        paths.EXPORT, model, prepared, source, params, target=target, info=card_info, calibration=calibration
    )
    max_difference = max(figures["max_difference"] for kind, figures in formats.items() if "_" not in kind)
    report = {
        "model": name,
        "tolerance": params.export.tolerance,
        "max_difference": max_difference,
        "formats": formats,
        "failed": failed,
        "preparation": preprocessing,
        "files": {path.name: path.stat().st_size for path in sorted(paths.EXPORT.iterdir())},
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_report("export", report)
    check_complete(paths.EXPORT, formats, failed)
    track_model(params.run, prepared)
    images = preprocessing["pictures"]
    logger.info("export: %s; logits of %d images differ by %.1e at most", paths.EXPORT, images, max_difference)


def _load_model(params: Params, prepared: PreparedDataset) -> tuple[nn.Module, Target]:
    """Load the model of export.from, in evaluation mode, with the target of its outputs.

    Raises UserError where its config is not data/prepared's.
    """
    if params.export.from_ == "probe":
        model = backbone_for(params.backbone, prepared.target.outputs, prepared.input["input_size"][0])
        set_head(model, read_head())
        return model.eval(), prepared.target
    model = load_timm(existing(paths.FINETUNE))
    check_config(paths.FINETUNE, model, prepared)
    return model, read_target(paths.FINETUNE)


if __name__ == "__main__":
    main(run, PARAMS)
