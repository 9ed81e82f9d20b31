"""Real photographs are stored as timm's evaluation sees them, if HEADSTART_PICTURES names a folder of class folders."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform

from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import manifest_rows
from headstart.stages import prepare
from helpers.images import params

FOLDER = os.environ.get("HEADSTART_PICTURES")


@pytest.mark.skipif(FOLDER is None, reason="HEADSTART_PICTURES is not set")
def test_prepared_photographs_are_what_timms_own_transform_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FOLDER is not None
    for folder in islice(sorted(path for path in Path(FOLDER).iterdir() if path.is_dir()), 3):
        (tmp_path / "raw" / folder.name).mkdir(parents=True)
        for file in islice(sorted(folder.rglob("*.JPEG")), 20):
            (tmp_path / "raw" / folder.name / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    prepare.run(params({"prepare.source": "imagefolder", "prepare.path": "raw"}).declared(prepare.PARAMS))
    prepared = PreparedDataset.open()
    transform = create_transform(**prepared.input, is_training=False)
    ours = Normalize(prepared.input)(evaluation_pixels(prepared, np.arange(len(prepared.ids))))
    for row, pixels in zip(manifest_rows(), ours, strict=True):
        if row["split"] == "train":  # stored at another size, for random crops
            continue
        image = ImageOps.exif_transpose(Image.open(Path("raw") / row["source"])).convert("RGB")
        torch.testing.assert_close(pixels, transform(image), rtol=0, atol=1e-6)
