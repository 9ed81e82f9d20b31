"""Cache the frozen backbone's features: what its classifier reads, one row a picture.

reads:   data/prepared, the backbone's weights
writes:  data/features (features.npy, features.json), reports/features.json
params:  backbone (without drop rates, which do nothing in a frozen backbone), features

Rows are kept by content under run.cache: going back to an earlier backbone or data set reads them, and adding pictures
computes only theirs. Killed and started again, it goes on where it was.
"""

import logging
import time

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.assembly.feature_cache import FeatureCache, picture_key
from headstart.assembly.inference import device_of, evaluation_pixels, infer
from headstart.assembly.program import main
from headstart.ground import artifacts
from headstart.ground.artifacts import Prepared
from headstart.ground.params import Params
from headstart.libraries.backbone import build, features_of, weights_sha256

PARAMS = (
    "backbone.name",
    "backbone.pretrained",
    "backbone.image_size",
    "backbone.args",
    "backbone.seed",
    "features",
)
READS = (artifacts.PREPARED,)
WRITES = (artifacts.FEATURES,)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Compute the rows that the cache lacks, then write all of them in the manifest's order."""
    began = time.perf_counter()
    prepared = Prepared.open()
    device = device_of(params.run)
    backbone = params.backbone
    model = build(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.image_size,
        args=backbone.args,
        seed=backbone.seed,
        num_classes=len(prepared.classes),
    )
    model = model.eval().requires_grad_(requires_grad=False).to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        _, height, width = prepared.input["input_size"]
        dim = features_of(model, torch.zeros(1, 3, height, width, device=device)).shape[1]
    about = {"weights": weights_sha256(model), "input": prepared.input, "dtype": params.features.dtype}

    cache = FeatureCache(artifacts.cache_folder(params.run.cache) / "features", about, dim, params.features.dtype)
    keys = [picture_key(evaluation_pixels(prepared, row[None])[0]) for row in np.arange(len(prepared.ids))]
    todo = _first_of_each(keys, list(cache.missing(keys)))
    began_inference = time.perf_counter()
    done = 0
    for rows in infer(
        lambda inputs: features_of(model, inputs),
        prepared,
        todo,
        batch_size=params.features.batch_size,
        device=device,
        label="features",
    ):
        cache.add([keys[row] for row in todo[done : done + len(rows)]], rows)
        done += len(rows)
    inference_seconds = time.perf_counter() - began_inference

    artifacts.write_features(map(cache.row, keys), (len(keys), dim), params.features.dtype, about)
    cache.close()
    report = {
        "pictures": len(keys),
        "width": dim,
        "computed": len(todo),
        "reused": len(keys) - len(todo),
        "images_per_second": round(len(todo) / inference_seconds, 1) if len(todo) else None,
        "seconds": round(time.perf_counter() - began, 2),
    }
    artifacts.write_report("features", report)
    logger.info(
        "features: %d rows of %d values; %d computed (%s images/s), %d from the cache",
        *(report[name] for name in ("pictures", "width", "computed", "images_per_second", "reused")),
    )


def _first_of_each(keys: list[bytes], missing: list[bool]) -> NDArray[np.int64]:
    """Give the rows to compute: those without a row in the cache, equal pictures once."""
    first: dict[bytes, int] = {}
    for row, (key, lacks) in enumerate(zip(keys, missing, strict=True)):
        if lacks:
            first.setdefault(key, row)
    return np.fromiter(first.values(), np.int64, len(first))


if __name__ == "__main__":
    main(run, PARAMS)
