"""Write the model as others load it, once every format has been shown to compute what was trained.

reads:   data/prepared and the files of its validation images (prepare.path), models/probe, models/finetune; for the
         model card reports/evaluate.json, reports/evaluate/trust.json and reports/evaluate/run.json; and what tells how
         sure the model is, models/reference
writes:  export (the bundle: model.safetensors and config.json for timm, model.onnx and the other formats of
         export.formats, reference.npy, README.md, LICENSE, manifest.json), reports/export.json
params:  export, backbone, prepare.source, prepare.path

Each format's answers to real images are compared with the trained model's first, all on the CPU and so with the same
arithmetic, and so is what becomes of an image's file on its way to each of them. Where they differ by more than the
bounds allow, nothing is written. `headstart export CHECKPOINT` does the same with the weights of any checkpoint
(`headstart export CHECKPOINT --help`).
"""

import logging
import time
from pathlib import Path

from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import atomic_write, existing, read_json, write_report
from headstart.core.paths import MODEL_CONFIG
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data.sources import open_source
from headstart.distributed.process_group import use_cores
from headstart.evaluation.ood import read_ood_reference
from headstart.export.bundle_writer import check_config, write_bundle
from headstart.export.model_card import ModelCardInfo
from headstart.models.backbone import backbone_for, set_head
from headstart.models.head import read_head
from headstart.models.timm_checkpoint import load_timm
from headstart.stages.program import main
from headstart.tracking.lineage import track_model

PARAMS = ("export", "backbone", "prepare.source", "prepare.path")
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
    """Write each format aside and compare it; the folder takes its final name when all agree."""
    began = time.perf_counter()
    use_cores(1)
    prepared, name = PreparedDataset.open(), params.export.from_
    source, told = open_source(params.prepare, params.run), _told(params, prepared)
    model = _chosen(params, prepared)
    with atomic_write(paths.EXPORT) as aside:
        aside.mkdir()
        formats, preparation = write_bundle(
            aside, model, prepared, source, params, told=told, sure=read_ood_reference(name)
        )
    worst = max(figures["max_difference"] for form, figures in formats.items() if "_" not in form)
    report = {
        "model": name,
        "tolerance": params.export.tolerance,
        "max_difference": worst,
        "formats": formats,
        "preparation": preparation,
        "files": {path.name: path.stat().st_size for path in sorted(paths.EXPORT.iterdir())},
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_report("export", report)
    track_model(params.run, prepared)
    images = preparation["pictures"]
    logger.info("export: %s; logits of %d images differ by %.1e at most", paths.EXPORT, images, worst)


def _chosen(params: Params, prepared: PreparedDataset) -> nn.Module:
    """Load the model that export.from names."""
    if params.export.from_ == "probe":
        model = backbone_for(params.backbone, len(prepared.classes))
        set_head(model, read_head())
        return model.eval()
    model = load_timm(existing(paths.FINETUNE))
    check_config(paths.FINETUNE / MODEL_CONFIG, model, prepared)
    return model


def _told(params: Params, prepared: PreparedDataset) -> ModelCardInfo:
    run = read_json(paths.RUN_INFO)
    return ModelCardInfo(
        model=params.export.from_,
        license=params.export.license,
        data_license=params.export.data_license,
        images={split: len(prepared.rows(split)) for split in SPLITS},
        hashes={"data and splits": run["data_sha256"], "pretrained weights": run["weights_sha256"]},
        formats={},
        evaluation=read_json(paths.report_of("evaluate")),
        calibration=read_json(paths.TRUST)["calibration"][params.export.from_],
    )


if __name__ == "__main__":
    main(run, PARAMS)
