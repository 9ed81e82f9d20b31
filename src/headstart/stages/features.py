"""Cache the frozen backbone's features: what its classifier reads, one row an image.

reads:   data/prepared (with the labels of train and validation), the backbone's weights
writes:  data/features (features.npy, features.json; of pretrained backbones also the classifier that they came with and
         the names of its classes: classifier.safetensors, classifier.json), reports/features.json, and what features
         tell of the data: reports/features/duplicates.csv (images that are in two splits, altered or not),
         reports/features/suspicious_labels.csv (of train and validation)
params:  backbone (without drop rates, which do nothing in a frozen backbone), features

Rows are kept by content under run.cache: going back to an earlier backbone or data set reads them, and adding images
computes only theirs. Killed and started again, it goes on where it was.
"""

import logging
import time
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import write_report
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.data_checks.tables import check_features
from headstart.distributed.process_group import ProcessGroup, connect
from headstart.features.cache import FeatureCache, image_key, write_features
from headstart.features.extract import run_inference
from headstart.models.backbone import channels_last, create_backbone, features_of, get_head, weights_sha256
from headstart.models.head import write_pretrained_head
from headstart.probe.zero_shot import pretrained_head
from headstart.stages.program import main

PARAMS = (
    "backbone.name",
    "backbone.pretrained",
    "backbone.image_size",
    "backbone.args",
    "backbone.seed",
    "features",
)
READS = (paths.PREPARED,)
WRITES = (paths.FEATURES, paths.DUPLICATES, paths.FEATURE_LABEL_ERRORS)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Compute the rows that the cache lacks, on all ranks; rank 0 then writes all of them in the manifest's order."""
    began = time.perf_counter()
    process_group, prepared, backbone = connect(params.run), PreparedDataset.open(), params.backbone
    model = create_backbone(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.image_size,
        args=backbone.args,
        seed=backbone.seed,
    )
    own = pretrained_head(model) if backbone.pretrained else None
    model.reset_classifier(len(prepared.classes))  # type: ignore[operator]
    model = channels_last(model.eval().requires_grad_(requires_grad=False).to(process_group.device))
    about = {"weights": weights_sha256(model), "input": prepared.input, "dtype": params.features.dtype}
    shape = len(prepared.ids), get_head(model).in_features

    folder = paths.cache_folder(params.run.cache) / "features"
    cache = process_group.run_on_rank_zero(lambda: FeatureCache(folder, about, shape[1], params.features.dtype))
    keys = _keys(prepared, process_group)
    todo = process_group.broadcast_from_rank_zero(
        lambda: _first_of_each(keys, list(cache.missing(keys)) if cache else [])
    )
    rate = _compute(todo, keys, prepared, model, cache=cache, params=params, process_group=process_group)
    if cache is None:
        return
    write_features(map(cache.row, keys), shape, params.features.dtype, about)
    cache.close()
    if own is not None:
        write_pretrained_head(own)
    report = {
        "pictures": shape[0],
        "width": shape[1],
        "computed": len(todo),
        "reused": shape[0] - len(todo),
        "images_per_second": rate,
    }
    logger.info(
        "features: %d rows of %d values; %d computed (%s images/s), %d from the cache",
        *(report[name] for name in ("pictures", "width", "computed", "images_per_second", "reused")),
    )
    report |= check_features(paths.DUPLICATES, paths.FEATURE_LABEL_ERRORS, prepared)
    write_report("features", report | {"seconds": round(time.perf_counter() - began, 2)})


def _keys(prepared: PreparedDataset, process_group: ProcessGroup) -> list[bytes]:
    """Name every image; each rank reads its share of them."""
    training = (prepared.splits == SPLITS.index("train")).tolist()
    count = len(training)
    # As many on each rank: some name the first images once more.
    mine = [row % count for row in range(process_group.rank, count + -count % process_group.world, process_group.world)]
    named = b"".join(image_key(prepared.pixels(row), training=training[row]) for row in mine)
    shares = process_group.gather(torch.frombuffer(bytearray(named), dtype=torch.uint8).view(len(mine), -1))
    everyones = torch.stack(shares, dim=1).flatten(0, 1)[:count]
    return [key.tobytes() for key in everyones.numpy()]


def _compute(
    todo: NDArray[np.int64],
    keys: list[bytes],
    prepared: PreparedDataset,
    model: nn.Module,
    *,
    cache: FeatureCache | None,
    params: Params,
    process_group: ProcessGroup,
) -> float | None:
    """Compute rows, batch by batch, into rank 0's cache; give the images a second, None if there was nothing to do."""
    began, done = time.perf_counter(), 0
    for rows in run_inference(
        partial(features_of, model),
        prepared,
        todo,
        batch_size=params.features.batch_size,
        run=params.run,
        process_group=process_group,
        label="features",
    ):
        if not np.isfinite(rows).all():
            raise UserError("backbone.name: this backbone gives features that are not finite; its weights are damaged")
        if cache is not None:
            cache.add([keys[row] for row in todo[done : done + len(rows)]], rows)
        done += len(rows)
    return round(done / (time.perf_counter() - began), 1) if done else None


def _first_of_each(keys: list[bytes], missing: list[bool]) -> NDArray[np.int64]:
    """Return the rows to compute: those without a row in the cache, equal images once."""
    first: dict[bytes, int] = {}
    for row, (key, lacks) in enumerate(zip(keys, missing, strict=True)):
        if lacks:
            first.setdefault(key, row)
    return np.fromiter(first.values(), np.int64, len(first))


if __name__ == "__main__":
    main(run, PARAMS)
