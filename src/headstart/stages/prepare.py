"""Decode every image once, resize it, and decide on the splits.

Images of validation and test are resized exactly as the backbone's evaluation does; training images are stored
larger, for random crops. Killed and started again, it goes on where it was.

reads:  prepare.path (digits and torchvision: the package, or the cache folder), and data/prepared of the run before,
        so that only new images are decoded
writes: data/prepared: the packed images and their index, manifest.csv, dataset.json
        reports/prepare.json, reports/prepare/odd_pictures.csv (tiny and blank ones)
params: prepare, backbone.name, backbone.image_size, backbone.args
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import write_json, write_report, write_table
from headstart.core.progress import Progress
from headstart.data.dataset import MANIFEST_COLUMNS, SPLITS
from headstart.data.image_info import PackedImage, TrainingResize
from headstart.data.index import Catalog
from headstart.data.packing import Estimate, Packer, Resizes, choose_store, earlier_rows, is_there, made_by, resuming
from headstart.data.parallel import in_order
from headstart.data.shards import STORES, checksum, write_index
from headstart.data.sources import Source, open_source
from headstart.data.splits import (
    NOT_GIVEN,
    check_classes,
    complete_splits,
    count_duplicates,
    fractions_to_draw,
    join_groups,
)
from headstart.data.transforms import evaluation_transform
from headstart.data_checks.tables import check_images, class_imbalance
from headstart.models.backbone import input_config_of
from headstart.stages.program import main

PARAMS = ("prepare", "backbone.name", "backbone.image_size", "backbone.args")
READS: tuple[str | Path, ...] = ("${prepare.path}",)
WRITES: tuple[str | Path, ...] = (paths.PREPARED, paths.ODD_IMAGES)

# What begins the name of a backbone that is a folder in timm's format.
LOCAL = "local-dir:"
# Images whose sizes are read beforehand, to estimate those of all.
SAMPLE = 64
# What a worker process imports.
PRELOAD = ("headstart.data.packing", "headstart.models.backbone", "headstart.data.sources")

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Prepare the images; raises UserError where the source is bad, or an image with ``on_bad_image: error``."""
    began = time.perf_counter()
    _refuse_own_outputs(params.backbone.name)
    source = open_source(params.prepare, params.run)
    with resuming(paths.PREPARED) as aside, closing(Catalog(aside / "work" / "catalog.sqlite")) as catalog:
        catalog.add(source.images())
        if catalog.class_counts():  # torchvision tells the labels with the pixels
            check_classes(catalog.class_counts(), splits_given=NOT_GIVEN not in catalog.given_counts())
        made, packer, size = _plan(params, source, catalog, aside)
        workers = joblib.cpu_count() if params.run.workers == "auto" else params.run.workers
        workers = 0 if source.in_memory else workers
        with closing(packer.earlier):
            figures = _pack(packer, catalog, size, workers)
            bad = _bad_images(catalog, params.prepare.on_bad_image)
            classes = list(catalog.class_counts())
            splits, counts = _splits(params, catalog, classes)
            figures |= _pack_again(packer, catalog, splits, workers)
        columns = (*MANIFEST_COLUMNS, *source.further_columns)
        write_table(aside / "manifest.csv", columns, catalog.manifest(splits))
        write_index(aside, catalog.index(classes, splits), len(splits))
        shard_bytes = [path.stat().st_size for path in sorted(aside.glob("pixels-*.bin"))]
        checksums = {name: checksum(aside / name) for name in ("manifest.csv", "index.npy")}
        about = {"pictures": len(splits), "classes": classes, **made, "shard_bytes": shard_bytes, "crc32": checksums}
        write_json(aside / "dataset.json", about)
    figures |= {"store": made["store"], "train_side": made["train_side"], "bytes": sum(shard_bytes)}
    figures |= {"seconds": round(time.perf_counter() - began, 1)}
    _say(counts, figures, bad)
    counts["class_imbalance"] = class_imbalance(counts["per_class"])
    figures |= check_images(paths.ODD_IMAGES, paths.PREPARED, len(splits), max(made["input"]["input_size"][1:]))
    write_report("prepare", counts | figures | {"bad": bad})


def _refuse_own_outputs(backbone: str) -> None:
    """Raise UserError where the backbone is what this pipeline writes: each run would begin from the one before."""
    folder = Path(backbone.removeprefix(LOCAL)).resolve()
    written = [path for path in (paths.EXPORT, paths.FINETUNE) if folder.is_relative_to(path.resolve())]
    if backbone.startswith(LOCAL) and written:
        raise UserError(
            f"backbone.name: {backbone}: this pipeline writes {written[0]} anew at each run. To start from it, copy "
            f"it: mkdir -p backbones && cp -r {written[0]} backbones/first, and backbone.name: {LOCAL}backbones/first"
        )


def _plan(params: Params, source: Source, catalog: Catalog, folder: Path) -> tuple[dict[str, Any], Packer, int]:
    """Decide how images are stored.

    Returns:
        What the stored bytes follow from, what packs them, and how many go into a shard.
    """
    prepare, backbone = params.prepare, params.backbone
    config = input_config_of(backbone.name, backbone.image_size, backbone.args)
    shares = fractions_to_draw(catalog.given_counts(), validation=prepare.split.validation, test=prepare.split.test)
    as_pixels = made_by(config, prepare.train_scale, "raw")
    resizes = Resizes(TrainingResize(as_pixels["train_side"], config["interpolation"]), evaluation_transform(config)[0])
    estimate = Estimate.of(catalog.sample(SAMPLE), source.read, resizes)
    size = estimate.total(catalog.given_counts(), sum(shares.values()))
    was = next((kind for kind in STORES if is_there(folder, paths.PREPARED, as_pixels | {"store": kind})), None)
    made = as_pixels | {"store": (store := choose_store(prepare.store, size, folder, was=was))}
    earlier = earlier_rows(folder, paths.PREPARED, made)
    return made, Packer(folder, source.read, resizes, shares, store, earlier), estimate.shard_images(store)


def _pack(packer: Packer, catalog: Catalog, size: int, workers: int) -> dict[str, Any]:
    """Store every image, in the order of source names; give figures for the report."""
    counts: Counter[str] = Counter(decoded=0, reused=0)
    with Progress("prepare", catalog.count()) as progress:
        for outcomes in in_order(packer, enumerate(catalog.runs(size)), workers=workers, preload=PRELOAD):
            counts.update(_recorded(catalog, outcomes))
            progress.advance(len(outcomes))
        return {**counts, "images_per_second": round(progress.close(), 1)}


def _pack_again(packer: Packer, catalog: Catalog, splits: NDArray[np.int8], workers: int) -> dict[str, Any]:
    """Write anew the shards with an image whose split did not come out as foreseen; give figures for the report."""
    tasks = catalog.to_pack_again(splits)
    first = list(islice(tasks, 1))
    if first:
        packer.earlier.close()
        packer.earlier.add(packer.folder)
    certain, decoded = replace(packer, shares={}), 0
    for outcomes in in_order(certain, chain(first, tasks), workers=workers, preload=PRELOAD):
        decoded += _recorded(catalog, outcomes)["decoded"]
    if catalog.count() != len(splits):
        raise UserError("prepare: images were changed while they were read: run it again")
    return {"decoded_again": decoded}


def _recorded(catalog: Catalog, outcomes: Iterable[PackedImage]) -> Counter[str]:
    """Note what is in a shard; count the images that were decoded for it, and those that were there already."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.problem is not None:
            catalog.record_bad(outcome.source, outcome.problem)
        else:
            catalog.record_good(outcome)
            counts["decoded" if outcome.decoded else "reused"] += 1
    return counts


def _bad_images(catalog: Catalog, on_bad_image: str) -> list[dict[str, str]]:
    """List the bad images; raises UserError with all of them if they are to stop the stage."""
    catalog.refuse_conflicts()
    bad = catalog.bad()
    if bad and on_bad_image == "error":
        lines = [f"  {name if name.isprintable() else repr(name)}: {problem}" for name, problem in bad]
        advice = "Correct or remove them, or set prepare.on_bad_image: skip"
        raise UserError("\n".join([f"prepare: {len(bad)} bad images:", *lines, advice]))
    return [{"source": name, "problem": problem} for name, problem in bad]


def _splits(params: Params, catalog: Catalog, classes: list[str]) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Decide on the splits, int8 (n,), indices into ``SPLITS``; give the counts for the report."""
    check_classes(catalog.class_counts(), splits_given=NOT_GIVEN not in catalog.given_counts())
    catalog.check_groups()
    given, labels, units, contents = catalog.arrays(classes)
    shares = params.prepare.split
    splits = complete_splits(
        given, labels, join_groups(units, contents), classes, validation=shares.validation, test=shares.test
    )
    per_split = np.bincount(splits, minlength=len(SPLITS)).tolist()
    per_class = np.zeros((len(classes), len(SPLITS)), np.int64)
    np.add.at(per_class, (labels, splits), 1)
    counts = {
        "pictures": len(splits),
        "classes": len(classes),
        "splits": dict(zip(SPLITS, per_split, strict=True)),
        "shares": {name: round(count / len(splits), 4) for name, count in zip(SPLITS, per_split, strict=True)},
        "per_class": {
            name: dict(zip(SPLITS, row, strict=True)) for name, row in zip(classes, per_class.tolist(), strict=True)
        },
        "duplicates": count_duplicates(contents, splits),
    }
    return splits, counts


def _say(counts: dict[str, Any], figures: dict[str, Any], bad: list[dict[str, str]]) -> None:
    shares = ", ".join(f"{name} {counts['splits'][name]:,} ({counts['shares'][name]:.1%})" for name in SPLITS)
    logger.info("%s images of %s classes: %s", f"{counts['pictures']:,}", counts["classes"], shares)
    logger.info(
        "{decoded} decoded, {reused} used again, {images_per_second} images/s; {bytes:,} bytes".format(**figures)
    )
    if counts["duplicates"]["across_splits"]:
        logger.info("%s images are in more than one of the given splits", counts["duplicates"]["across_splits"])
    if bad:
        logger.info("%s bad images left out; they are listed in reports/prepare.json", len(bad))


if __name__ == "__main__":
    main(run, PARAMS)
