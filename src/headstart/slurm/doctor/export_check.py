"""A trial of ``export.formats`` on an untrained copy of the backbone, since the export is what runs last."""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.storage import storage_message
from headstart.export.bundle_writer import write_formats
from headstart.models.backbone import backbone_for, input_config
from headstart.models.stem import expected_channels
from headstart.slurm.doctor.batch_checks import Finding


def check_formats(params: Params) -> Iterator[Finding]:
    """Write a model with random weights, two classes and the wanted size in each format, and run it on three images.

    It takes seconds for small models, a minute for those of many layers, and a temporary folder for their weights.
    """
    backbone, formats = params.backbone.model_copy(update={"pretrained": False}), params.export.formats
    if not formats:
        return
    if sys.stderr.isatty():
        print(f"doctor: exports an untrained {backbone.name} as {', '.join(formats)} ...", file=sys.stderr)
    try:
        model = backbone_for(backbone, 2, expected_channels(params)).eval()
    except UserError as error:
        yield Finding("error", "backbone-unavailable", str(error))
        return
    size = tuple(input_config(model, backbone.fixed_size)["input_size"])
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with TemporaryDirectory(prefix="headstart-doctor-") as folder:
            failed = write_formats(
                Path(folder),
                model,
                size,
                formats,
                metadata={},
                range_batches=[images.numpy()],
                check=lambda _name, function: function(images),
            )
    except OSError as error:
        yield Finding("warning", "formats-untried", f"export.formats were not tried: {storage_message(error) or error}")
        return
    for reason in failed.values():
        what = f"export.formats: {reason}: leave it out, or choose another backbone.name"
        yield Finding("error", "format-not-exportable", what)
