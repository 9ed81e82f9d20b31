"""Decode every picture once, resize it as the backbone's evaluation does, and decide on the splits.

reads:  prepare.path (digits and torchvision: the package, or the cache folder), and data/prepared of the run before,
        so that only new pictures are decoded
writes: data/prepared: the packed pixels, manifest.csv, dataset.json
        reports/prepare.json
params: prepare, backbone.name, backbone.image_size, backbone.args
"""

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from headstart.assembly.program import main
from headstart.assembly.store import EarlierRows, ShardWriter, made_by
from headstart.ground import artifacts
from headstart.ground.artifacts import MANIFEST_COLUMNS, SPLITS
from headstart.ground.errors import UserError
from headstart.ground.params import Params
from headstart.libraries.backbone import evaluation_transform, input_config_of
from headstart.libraries.catalog import Catalog
from headstart.libraries.datasets import Digits, Torchvision
from headstart.libraries.images import Decoder
from headstart.libraries.progress import Progress
from headstart.libraries.sources import ImageFolder, Source
from headstart.libraries.splits import check_classes, complete_splits, count_duplicates, joined_units
from headstart.libraries.tables import CsvTable
from headstart.libraries.workers import in_order

PARAMS = ("prepare", "backbone.name", "backbone.image_size", "backbone.args")
READS: tuple[str | Path, ...] = ("${prepare.path}",)
WRITES: tuple[str | Path, ...] = (artifacts.PREPARED,)

CHUNK = 32

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Prepare the pictures; raises UserError where the source is bad, or a picture with ``on_bad_image: error``."""
    began = time.perf_counter()
    config = input_config_of(params.backbone.name, params.backbone.image_size, params.backbone.args)
    source = _source(params)
    with artifacts.replacing(artifacts.PREPARED) as aside:
        work = aside / "work"
        work.mkdir(parents=True)
        with closing(Catalog(work / "catalog.sqlite")) as catalog:
            catalog.add(source.pictures())
            if catalog.class_counts():  # torchvision tells the labels with the pixels
                check_classes(catalog.class_counts(), splits_given=catalog.splits_given())
            with closing(EarlierRows(artifacts.PREPARED, made_by(config), work / "earlier.sqlite")) as earlier:
                figures, shard_bytes = _store_pixels(params, source, catalog, earlier, aside)
            bad = _bad_pictures(catalog, params.prepare.on_bad_image)
            counts = _write_manifest(params, catalog, source.further_columns, aside)
        about = {"pictures": counts["pictures"], "classes": list(counts["per_class"])}
        artifacts.write_json(aside / "dataset.json", about | made_by(config) | {"shard_bytes": shard_bytes})
        shutil.rmtree(work)
    seconds = round(time.perf_counter() - began, 1)
    artifacts.write_report("prepare", counts | figures | {"seconds": seconds, "bad": bad})
    _say(counts, figures, bad)


def _source(params: Params) -> Source:
    kind, _, name = params.prepare.source.partition(":")
    match kind:
        case "digits":
            return Digits()
        case "torchvision":
            return Torchvision(name, artifacts.cache_folder(params.run.cache) / "torchvision")
        case "csv":
            return CsvTable(Path(params.prepare.path), name)
        case _:
            return ImageFolder(Path(params.prepare.path))


def _store_pixels(
    params: Params, source: Source, catalog: Catalog, earlier: EarlierRows, folder: Path
) -> tuple[dict[str, Any], list[int]]:
    """Decode what is new and write every row, in the order of source names.

    Returns:
        Figures for the report, and the size of each shard in bytes.
    """
    resize, _ = evaluation_transform(earlier.made["input"])
    workers = joblib.cpu_count() if params.run.workers == "auto" else params.run.workers
    chunks = in_order(
        Decoder(source.read, resize, earlier),
        catalog.chunks(CHUNK),
        workers=0 if source.in_memory else workers,
        preload=("headstart.libraries.backbone", "headstart.libraries.datasets"),
    )
    decoded = reused = 0
    with ShardWriter(folder) as shards, Progress("prepare", catalog.count()) as progress:
        for outcomes in chunks:
            for outcome in outcomes:
                if outcome.problem is not None:
                    catalog.record_bad(outcome.source, outcome.problem)
                    continue
                decoded, reused = decoded + (outcome.pixels is not None), reused + (outcome.pixels is None)
                whole = earlier.completed(outcome) if outcome.pixels is None else outcome
                catalog.record_good(whole, shards.append(whole.stored()))
            progress.advance(len(outcomes))
        rate = progress.close()
    return {"decoded": decoded, "reused": reused, "images_per_second": round(rate, 1)}, shards.shard_bytes


def _bad_pictures(catalog: Catalog, on_bad_image: str) -> list[dict[str, str]]:
    """List the bad pictures; raises UserError with all of them if they are to stop the stage."""
    catalog.refuse_conflicts()
    bad = catalog.bad()
    if bad and on_bad_image == "error":
        lines = [f"  {name if name.isprintable() else repr(name)}: {problem}" for name, problem in bad]
        advice = "Correct or remove them, or set prepare.on_bad_image: skip"
        raise UserError("\n".join([f"prepare: {len(bad)} bad pictures:", *lines, advice]))
    return [{"source": name, "problem": problem} for name, problem in bad]


def _write_manifest(params: Params, catalog: Catalog, further_columns: Sequence[str], folder: Path) -> dict[str, Any]:
    """Decide on the splits and write the manifest; give the counts for the report."""
    class_counts = catalog.class_counts()
    check_classes(class_counts, splits_given=catalog.splits_given())
    catalog.check_groups()
    classes = list(class_counts)
    given, labels, units, contents = catalog.arrays(classes)
    shares = params.prepare.split
    splits = complete_splits(
        given, labels, joined_units(units, contents), classes, validation=shares.validation, test=shares.test
    )
    artifacts.write_table(folder / "manifest.csv", (*MANIFEST_COLUMNS, *further_columns), catalog.manifest(splits))
    per_split = np.bincount(splits, minlength=len(SPLITS)).tolist()
    per_class = np.zeros((len(classes), len(SPLITS)), np.int64)
    np.add.at(per_class, (labels, splits), 1)
    return {
        "pictures": len(splits),
        "classes": len(classes),
        "splits": dict(zip(SPLITS, per_split, strict=True)),
        "shares": {name: round(count / len(splits), 4) for name, count in zip(SPLITS, per_split, strict=True)},
        "per_class": {
            name: dict(zip(SPLITS, row, strict=True)) for name, row in zip(classes, per_class.tolist(), strict=True)
        },
        "duplicates": count_duplicates(contents, splits),
    }


def _say(counts: dict[str, Any], figures: dict[str, Any], bad: list[dict[str, str]]) -> None:
    shares = ", ".join(f"{name} {counts['splits'][name]:,} ({counts['shares'][name]:.1%})" for name in SPLITS)
    logger.info("%s pictures of %s classes: %s", f"{counts['pictures']:,}", counts["classes"], shares)
    logger.info(
        "%s decoded, %s used again, %s images/s", figures["decoded"], figures["reused"], figures["images_per_second"]
    )
    if counts["duplicates"]["across_splits"]:
        logger.info("%s pictures are in more than one of the given splits", counts["duplicates"]["across_splits"])
    if bad:
        logger.info("%s bad pictures left out; they are listed in reports/prepare.json", len(bad))


if __name__ == "__main__":
    main(run, PARAMS)
