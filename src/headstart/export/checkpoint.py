"""Write any checkpoint of this project's model as a bundle: `headstart export CHECKPOINT`.

reads:   CHECKPOINT (a Lightning .ckpt, a state dict as torch saves it, or .safetensors), params.yaml, data/prepared and
         the files of its validation images
writes:  export-NAME, or the folder of --out: a bundle as of the stage `export`, each format after the same parity check

The weights are those of the backbone of params.yaml with a head for the classes of data/prepared. They were
not evaluated, so the bundle has no temperature, no prediction sets and no distance, and its card says so.
"""

import argparse
import hashlib
import logging
import sys
from pathlib import Path

from headstart.core.errors import UserError


def main() -> None:
    """Write it: exit code 1 with one message on stderr where the user can mend it."""
    parser = argparse.ArgumentParser(
        prog="headstart export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, help="a folder that does not exist yet; default: export-NAME")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("headstart").setLevel(logging.INFO)
    try:
        export_checkpoint(args.checkpoint, args.out or Path(f"export-{args.checkpoint.stem}"), args.params)
    except UserError as error:
        sys.exit(f"error: {error}")


def export_checkpoint(checkpoint: Path, out: Path, params_file: Path) -> None:
    """Write a checkpoint's bundle; raises UserError where its weights do not fit the model, or a parity check fails."""
    if out.exists():
        raise UserError(f"{out} exists already: name another folder with --out, or remove it")
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} does not exist or is no file")
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Imported late: errors in the command line need no torch.
    from headstart.config.loader import load_params  # noqa: PLC0415
    from headstart.core.io import atomic_write  # noqa: PLC0415
    from headstart.data.dataset import (  # noqa: PLC0415
        SPLITS,
        PreparedDataset,
        data_sha256,
    )
    from headstart.data.sources import open_source  # noqa: PLC0415
    from headstart.distributed.process_group import use_cores  # noqa: PLC0415
    from headstart.export.bundle_writer import write_bundle  # noqa: PLC0415
    from headstart.export.model_card import ModelCardInfo  # noqa: PLC0415
    from headstart.models.backbone import backbone_for  # noqa: PLC0415
    from headstart.models.timm_checkpoint import load_weights  # noqa: PLC0415

    params, prepared = load_params(params_file), PreparedDataset.open()
    use_cores(1)
    backbone = params.backbone.model_copy(update={"pretrained": False})
    model = backbone_for(backbone, len(prepared.classes)).eval()
    load_weights(model, checkpoint)
    card = ModelCardInfo(
        model=checkpoint.name,
        license=params.export.license,
        data_license=params.export.data_license,
        images={split: len(prepared.rows(split)) for split in SPLITS},
        hashes={"checkpoint": digest, "data and splits": data_sha256(prepared)},
        formats={},
    )
    source = open_source(params.prepare, params.run)
    with atomic_write(out) as partial:
        partial.mkdir()
        write_bundle(partial, model, prepared, source, params, card=card, calibration=None)
    logging.getLogger(__name__).info("%s", out)


if __name__ == "__main__":
    main()
