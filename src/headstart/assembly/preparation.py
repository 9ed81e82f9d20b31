"""Whether a picture's file becomes the same input everywhere: by timm, by the stages, and by predict without torch."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data.transforms_factory import create_transform
from torchvision.transforms.functional import pil_to_tensor

from headstart.assembly.inference import Normalize, evaluation_pixels
from headstart.ground.artifacts import SPLITS, Prepared, manifest_rows
from headstart.ground.errors import UserError
from headstart.libraries.backbone import evaluation_transform
from headstart.libraries.decoding import BadImageError, decode
from headstart.libraries.images import LabelledImage, content_sha256
from headstart.libraries.preprocessing import Preprocessing
from headstart.libraries.sources import Source

TOLERANCE = 1e-5
"""Of a normalised pixel: float32 rounds, and no level of 255 is nearer than 1e-3."""


def compare_preparation(source: Source, prepared: Prepared, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Prepare pictures from their files' bytes in every way, and compare.

    Args:
        source: of the pictures.
        prepared: the same pictures as ``prepare`` stored them.
        rows: which of them.

    Returns:
        ``pictures``, and the largest difference of a normalised pixel from timm's own transform: of ``ours``, the
        stages' resize, crop and normalisation; of ``predict``; and of ``stored``, None where JPEGs or larger training
        pictures are stored, which are not quite the same.

    Raises:
        UserError: a picture differs by more than ``TOLERANCE``, or is no longer what it was; the message names it.
    """
    exact = prepared.store == "raw" and bool((prepared.splits[rows] != SPLITS.index("train")).all())
    timms = create_transform(**prepared.input, is_training=False)
    normalize, predicts = Normalize(prepared.input), Preprocessing.of(prepared.input)
    resize, crop = evaluation_transform(prepared.input)
    wanted = set(rows.tolist())
    worst: dict[str, float] = dict.fromkeys(("ours", "predict", *(["stored"] if exact else [])), 0.0)
    for row, told in enumerate(manifest_rows(prepared.folder)):
        if row not in wanted:
            continue
        picture = decode(_bytes(source, told))
        expected = timms(picture).numpy()
        pixels = {"ours": crop(pil_to_tensor(resize(picture))).permute(1, 2, 0)[None]}
        if exact:
            pixels["stored"] = evaluation_pixels(prepared, np.array([row]))
        found = {name: normalize(each)[0].numpy() for name, each in pixels.items()} | {"predict": predicts(picture)}
        for name, each in found.items():
            difference = float(np.abs(each - expected).max())
            if not difference <= TOLERANCE:
                raise UserError(
                    f"export: {told['source']} comes out otherwise as {name} than by timm's own transform: a "
                    f"normalised pixel differs by {difference:.3g}. Nothing was exported"
                )
            worst[name] = max(worst[name], difference)
    return {"pictures": len(rows), "stored": None, **worst}


def _bytes(source: Source, told: dict[str, str]) -> bytes:
    """Read a picture's file, or make one of what stands in for it; raises UserError where it is not as it was."""
    try:
        content = source.read(told["source"])
    except BadImageError as error:
        raise UserError(f"export: {told['source']} can't be read any more: {error}. Run `dvc repro`") from error
    if content_sha256(content).hex() != told["sha256"]:
        raise UserError(f"export: {told['source']} was changed since it was prepared: run `dvc repro`")
    if not isinstance(content, LabelledImage):
        return content
    file = io.BytesIO()
    content.image.save(file, "PNG")
    return file.getvalue()
