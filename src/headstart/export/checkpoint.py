"""Write any checkpoint of this project's model as a bundle: `headstart export CHECKPOINT`.

reads:   CHECKPOINT (a Lightning .ckpt, a state dict as torch saves it, or .safetensors), params.yaml, data/prepared and
         the files of its validation images
writes:  export-NAME, or the folder that --out names: what the stage `export` writes, each format through the same gate

The weights are those of the backbone of params.yaml with a head for the classes of data/prepared. Nothing is known of
how sure they are, so there are no temperature, no sets and no distance, and the card says that nobody evaluated them.
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
    """Write the bundle; raises UserError where the checkpoint is not the model's or a format differs from it."""
    if out.exists():
        raise UserError(f"{out} exists already: name another folder with --out, or remove it")
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} does not exist or is no file")
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Late: what is wrong in the command line is said before torch is there.
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
    told = ModelCardInfo(
        model=checkpoint.name,
        license=params.export.license,
        data_license=params.export.data_license,
        images={split: len(prepared.rows(split)) for split in SPLITS},
        hashes={"checkpoint": digest, "data and splits": data_sha256(prepared)},
        formats={},
    )
    source = open_source(params.prepare, params.run)
    with atomic_write(out) as aside:
        aside.mkdir()
        write_bundle(aside, model, prepared, source, params, told=told, sure=None)
    logging.getLogger(__name__).info("%s", out)


if __name__ == "__main__":
    main()
