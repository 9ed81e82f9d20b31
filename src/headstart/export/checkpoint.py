"""Any checkpoint of this project's model as a bundle: `headstart export-checkpoint`."""

import hashlib
import logging
from pathlib import Path

from headstart.core.errors import UserError


def export_checkpoint(checkpoint: Path, out: Path, params_file: Path) -> None:
    """Write a checkpoint's bundle; raises UserError where its weights do not fit the model, or a format fails."""
    if out.exists():
        raise UserError(f"{out} exists already: name another folder with --out, or remove it")
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} does not exist or is no file")
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Imported late: errors in the command line need no torch.
    from headstart.config.loader import load_params  # noqa: PLC0415
    from headstart.data.dataset import PreparedDataset  # noqa: PLC0415
    from headstart.data.sources import open_source  # noqa: PLC0415
    from headstart.distributed.process_group import use_cores  # noqa: PLC0415
    from headstart.export.bundle_writer import check_complete, write_bundle  # noqa: PLC0415
    from headstart.export.model_card import ModelCardInfo  # noqa: PLC0415
    from headstart.models.backbone import backbone_for  # noqa: PLC0415
    from headstart.models.timm_checkpoint import load_weights  # noqa: PLC0415

    params, prepared = load_params(params_file), PreparedDataset.open()
    use_cores(1)
    backbone = params.backbone.model_copy(update={"pretrained": False})
    target = prepared.target.with_loss(params.finetune.loss)
    model = backbone_for(backbone, target.outputs, prepared.input["input_size"][0]).eval()
    load_weights(model, checkpoint)
    info = ModelCardInfo(checkpoint.name, {"checkpoint": digest, "data and splits": prepared.sha256})
    source = open_source(params.prepare, params.run)
    formats, _, failed = write_bundle(out, model, prepared, source, params, target=target, info=info)
    check_complete(out, formats, failed)
    logging.getLogger(__name__).info("%s", out)
