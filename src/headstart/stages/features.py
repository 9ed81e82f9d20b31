"""Cache the frozen backbone's features: the inputs of its classifier, one row per image.

reads:   data/prepared (with the labels of train and validation), the backbone's weights
writes:  data/features: features.npy, features.json; of a pretrained backbone also its own classifier and the names of
         its classes, classifier.safetensors and classifier.json, and the features of some validation images after each
         change of features/changes.py, changed.safetensors
         reports/features.json, and data checks that need features: reports/features/duplicates.csv (images that are in
         two splits, altered or not), reports/features/suspicious_labels.csv (of train and validation)
params:  backbone (without drop rates, which do nothing in a frozen backbone), features

Rows are cached by content under run.cache: going back to an earlier backbone or data set only reads them, and of added
images only their own are computed. Killed and started again, it resumes after the last thousand rows.
"""

import logging
import time
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.io import write_report
from headstart.data.dataset import PreparedDataset, evenly
from headstart.data_checks.tables import check_features
from headstart.distributed.connect import connect
from headstart.distributed.process_group import ProcessGroup
from headstart.features.cache import FeatureCache, image_keys, write_changed_features
from headstart.features.changes import CHANGES, MOST_IMAGES, changed_features
from headstart.features.extract import compute_missing_features, write_features
from headstart.models.backbone import channels_last, create_backbone, features_of, get_head, weights_sha256
from headstart.models.head import write_pretrained_head
from headstart.probe.zero_shot import pretrained_head
from headstart.stages.program import main

BACKBONE = ("name", "pretrained", "image_size", "args", "rgb", "seed")
PARAMS = (*(f"backbone.{key}" for key in BACKBONE), "features")
READS = (paths.PREPARED,)
WRITES = (paths.FEATURES, paths.DUPLICATES, paths.FEATURE_LABEL_ERRORS)

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Compute the features that the cache lacks, and write all in the manifest's order, on all ranks."""
    began = time.perf_counter()
    process_group, prepared, backbone = connect(params.run), PreparedDataset.open(), params.backbone
    model = create_backbone(
        backbone.name,
        pretrained=backbone.pretrained,
        image_size=backbone.fixed_size,
        args=backbone.args,
        seed=backbone.seed,
        in_chans=prepared.input["input_size"][0],
        rgb=backbone.rgb,
    )
    own_head = pretrained_head(model) if backbone.pretrained else None
    model.reset_classifier(prepared.target.outputs)  # type: ignore[operator]
    model = channels_last(model.eval().requires_grad_(requires_grad=False).to(process_group.device))
    info = {"weights": weights_sha256(model), "input": prepared.input, "dtype": params.features.dtype}
    shape = len(prepared.ids), get_head(model).in_features
    computed, rate = _compute(model, prepared, info, shape, params=params, process_group=process_group)
    if process_group.rank:
        return
    if own_head is not None:
        write_pretrained_head(own_head)
    reused = shape[0] - computed
    message = "features: %d rows of %d values; %d computed (%s images/s), %d from the cache"
    logger.info(message, *shape, computed, rate, reused)
    report: dict[str, Any] = {"pictures": shape[0], "width": shape[1], "computed": computed, "reused": reused}
    found = check_features(paths.DUPLICATES, paths.FEATURE_LABEL_ERRORS, prepared, params.features.checks)
    report |= {"images_per_second": rate, **found}
    write_report("features", report | {"seconds": round(time.perf_counter() - began, 2)})


def _compute(
    model: nn.Module,
    prepared: PreparedDataset,
    info: dict[str, Any],
    shape: tuple[int, int],
    *,
    params: Params,
    process_group: ProcessGroup,
) -> tuple[int, float | None]:
    """Write data/features from the cache, and what that lacks into it; see ``compute_missing_features``.

    The keys of many images and the cache's are not in memory any more when the data checks begin.
    """
    folder, dtype = paths.cache_folder(params.run.cache) / "features", params.features.dtype
    if folder.exists() and any(folder.glob("*.sqlite")):
        logger.info("%s: the files of an earlier version are not used any more: `rm %s/*.sqlite`", folder, folder)
    key, keys = info | {"store": prepared.spec}, image_keys(prepared)
    cache = FeatureCache(folder, key, shape[1], dtype)
    compute = partial(compute_missing_features, params=params, process_group=process_group)
    of_images = partial(features_of, model)
    computed, rate = compute(of_images, prepared, keys, cache)
    write_features(lambda part: cache.rows(keys[part]), shape, dtype, info, process_group)
    is_pretrained = params.backbone.pretrained
    tried = evenly(prepared.rows("validation"), MOST_IMAGES) if is_pretrained else np.empty(0, np.int64)
    if len(tried):
        _, height, width = prepared.input["input_size"]
        changes = [name for name in CHANGES if height == width or name != "quarter_turn"]
        changed = FeatureCache(folder, key | {"changes": changes}, len(changes) * shape[1], dtype)
        compute(partial(changed_features, of_images, changes), prepared, keys[tried], changed, tried)
        if process_group.rank == 0:
            write_changed_features(tried, changes, changed.rows(keys[tried]))
    return computed, rate


if __name__ == "__main__":
    main(run, PARAMS)
