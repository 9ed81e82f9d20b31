"""Decode every image once, resize it, and decide on the splits.

Images of validation and test are resized exactly as in the backbone's evaluation; training images are stored larger,
for random crops. Killed and started again, it resumes after the last completed shard.

reads:  prepare.path (digits and torchvision: the package, or the cache folder), and data/prepared of the previous run,
        so that only new images are decoded
writes: data/prepared: the packed images and their index, manifest.csv, dataset.json
        reports/prepare.json, reports/prepare/odd_pictures.csv (tiny and blank ones, and ones whose values are odd)
params: prepare, backbone.name, backbone.image_size, backbone.args, backbone.rgb (other keys are checked, not used)
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.config.choice import Choice
from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import BackboneConfig, Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json, write_report
from headstart.core.problems import SHOWN, count_kinds, list_problems, some
from headstart.data.band_files import shared_endings
from headstart.data.band_statistics import Found, check_keys, measure_bands
from headstart.data.dataset import SPLITS, VALUES
from headstart.data.image_info import PackedImage, TrainingResize
from headstart.data.index import Catalog
from headstart.data.manifest import write_manifest
from headstart.data.packing import (
    BandResizes,
    Packer,
    Resizes,
    ShardLists,
    SizeEstimate,
    choose_store,
    infos_of,
    pack_shards,
    sizes_of,
    store_spec,
)
from headstart.data.reuse import (
    NOTES_PATH,
    has_reusable_store,
    index_reusable_rows,
    read_packed,
    resumable_store,
)
from headstart.data.shards import STORES, Shards, checksum, read_index, write_array, write_index
from headstart.data.source_item import Source
from headstart.data.sources import open_source
from headstart.data.splits import (
    NOT_GIVEN,
    TRAIN,
    check_classes,
    complete_splits,
    count_duplicates,
    count_splits,
    fractions_to_draw,
    join_groups,
    refuse_none,
    refuse_untrained_classes,
)
from headstart.data.transforms import evaluation_transform
from headstart.data_checks.tables import check_images, class_imbalance
from headstart.distributed.connect import connect
from headstart.distributed.heartbeat import watch_heartbeats
from headstart.distributed.process_group import ProcessGroup
from headstart.images.arrays import choose_layout
from headstart.images.decode import ImageLimits, Note
from headstart.images.preprocess import Preprocessing
from headstart.models.backbone import LOCAL_DIR, input_config_by_name
from headstart.models.backbone_check import check_backbone, choose_side
from headstart.stages.program import main
from headstart.targets.target import Reader, Target, Values

PARAMS = ("prepare", "backbone.name", "backbone.image_size", "backbone.args", "backbone.rgb")
READS: tuple[str | Path, ...] = ("${prepare.path}",)
WRITES: tuple[str | Path, ...] = (paths.PREPARED, paths.ODD_IMAGES)

SAMPLE = 64  # images whose sizes are read first, to estimate the size of the store
NAMES = 4096  # of images that are looked at for endings such as _B02 and _B03

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Prepare the images; raises UserError if the source is bad, or an image with ``on_bad_image: error``."""
    # No GPU is needed; and a rank waits for the others as long as they live: to list the images may take hours.
    process_group = connect(params.run.model_copy(update={"accelerator": "cpu"}), timeout=timedelta(days=7))
    with watch_heartbeats(process_group.rank, process_group.world, params.run.timeout_minutes, steps=False):
        prepare_images(params, process_group)


def prepare_images(params: Params, process_group: ProcessGroup, sample: int | None = None) -> None:
    """Prepare the images, or only a ``sample`` of about so many; raises as ``run`` does.

    All ranks pack, each shard one of them; the rest is rank 0's.
    """
    with closing(_prepare(params, sample)) as steps:
        while (packer := process_group.broadcast_from_rank_zero(lambda: next(steps, None))) is not None:
            process_group.run_on_all(partial(pack_shards, packer, process_group))


def _prepare(params: Params, sample: int | None) -> Generator[Packer, None, None]:
    """Prepare the images on rank 0; yield what all ranks pack before it goes on."""
    began = time.perf_counter()
    _refuse_own_outputs(params.backbone.name)
    if remark := check_backbone(_backbone(params).model_copy(update={"rgb": None})):
        logger.info("%s", remark)
    source = open_source(params.prepare, params.run, params.prepare.split_folders)
    if source.root is not None:
        _refuse_output_folders(source.root)
    with resumable_store(paths.PREPARED) as folder, closing(Catalog(folder / "work" / "catalog.sqlite")) as catalog:
        catalog.add(source.images())
        if source.reader.is_name:
            catalog.settle_case(params.prepare.label_case)
        if sample is not None:
            catalog.keep_sample(sample, by_label=source.reader.is_name)
        if len(catalog.bad()) > SHOWN:  # told before the other images are read, which may take hours
            _bad_images(catalog, params.prepare.on_bad_image)
        if catalog.class_counts():  # torchvision's labels come with the pixels
            _check_target(catalog, source.reader)
        spec, packer, choices = _plan(params, source, catalog, folder)
        packing_began = time.perf_counter()
        yield packer
        rate = packer.lists.images / (time.perf_counter() - packing_began)
        packed = catalog.record(_packed(packer))
        figures = {name: packed[name] for name in ("decoded", "reused")} | {"images_per_second": round(rate, 1)}
        catalog.reject_conflicting_labels()
        bad = _bad_images(catalog, params.prepare.on_bad_image)
        target, values, splits, counts = _decide_splits(params, catalog, source.reader)
        figures["decoded_again"] = 0
        lists = ShardLists.write(folder / "work" / "lists-again.jsonl", catalog.shards_to_repack(splits))
        if lists.offsets:  # with an image whose split was not as predicted
            packer.reusable.add(folder)
            packer = replace(packer, lists=lists, fractions={})
            yield packer
            figures["decoded_again"] = catalog.record(_packed(packer))["decoded"]
        if catalog.count() != len(splits):
            raise UserError("prepare: images were changed while they were read: run it again")
        if notes := catalog.notes():
            write_json(folder / NOTES_PATH, {content: note for _, content, note in notes})
        written = _write_dataset(
            folder,
            source,
            catalog,
            spec,
            target=target,
            values=values,
            splits=splits,
            bands=partial(_bands, params, spec, packer),
        )
    figures |= {"store": spec["store"], "train_side": spec["train_side"], "bytes": sum(written)}
    figures["seconds"] = round(time.perf_counter() - began, 1)
    _log_summary(target, counts, figures, bad)
    _report(target, counts | figures | {"bad": bad}, choices, notes, max(spec["input"]["input_size"][1:]))


def _tell_shared_endings(endings: list[str]) -> None:
    """Warn of files that may belong together, though each is an image: they would come into several splits."""
    if endings:
        logger.warning(
            "all files come in groups whose names end in %s. Bands of one image belong into prepare.band_files; views "
            "of one thing into one split, by a table with a column `group`: docs/sources.md",
            some(endings, 5),
        )


def _report(
    target: Target, figures: dict[str, Any], choices: list[Choice], notes: list[tuple[int, str, Note]], side: int
) -> None:
    """Check the images, and write ``reports/prepare.json``; of images with bands with what their values are."""
    figures |= {"class_imbalance": class_imbalance(target, figures["per_class"])}
    figures |= check_images(paths.ODD_IMAGES, paths.PREPARED, side, [(row, note) for row, _, note in notes])
    dataset = read_json(paths.PREPARED / "dataset.json")
    figures |= {key: dataset[key] for key in ("found", "bands") if key in dataset}
    write_report("prepare", figures | {"chosen": [choice._asdict() for choice in choices]})


def _write_dataset(
    folder: Path,
    source: Source,
    catalog: Catalog,
    spec: dict[str, Any],
    *,
    target: Target,
    values: Values,
    splits: NDArray[np.int8],
    bands: Callable[[Shards, NDArray[np.int64]], dict[str, Any]] = lambda *_: {},
) -> list[int]:
    """Write the tables beside the shards; return the shards' sizes in bytes.

    ``bands`` returns what is to be noted of the pixels, given the shards and the rows of training images.
    """
    sha256 = write_manifest(folder, source.metadata_columns, catalog.manifest(splits), len(splits))
    are_numbers = values.dtype == np.int64
    write_index(folder, catalog.index_rows(values if are_numbers else repeat(0, len(values)), splits), len(splits))
    tables = ["index.npy"] if are_numbers else ["index.npy", VALUES]
    if not are_numbers:
        write_array(folder / VALUES, values, values.dtype, values.shape)
    sizes = [path.stat().st_size for path in sorted(folder.glob("pixels-*.bin"))]
    about = {"classes": [*target.names], "target": {"kind": target.kind, "spec": target.spec()}}
    about |= bands(Shards(folder, read_index(folder)), np.flatnonzero(splits == TRAIN))
    dataset = {"pictures": len(splits), **about, **spec, "shard_bytes": sizes, "sha256": sha256}
    write_json(folder / "dataset.json", dataset | {"crc32": {name: checksum(folder / name) for name in tables}})
    return sizes


def _bands(
    params: Params, spec: dict[str, Any], packer: Packer, shards: Shards, rows: NDArray[np.int64]
) -> dict[str, Any]:
    """Return what is noted of images with bands: what was found, and what their values mean; log it."""
    if packer.layout is None:
        return {}
    ranges, own = params.prepare.range_pairs, (spec["input"]["mean"], spec["input"]["std"])
    found = Found.of(shards, rows)
    bands = measure_bands(found, packer.layout, ranges, rgb=params.backbone.rgb, own=own)
    line = found.describe(packer.layout)
    logger.info("%s; as 0 to 1 for the model: %s (prepare.range: %s)", line, bands.ranges(), params.prepare.range)
    return {"found": line, "bands": bands.record()}


def _packed(packer: Packer) -> Iterator[PackedImage]:
    """Yield the images of all shards that were packed."""
    return chain.from_iterable(read_packed(packer.folder, shard) for shard in packer.lists.offsets)


def _refuse_own_outputs(backbone: str) -> None:
    """Raise UserError if the backbone is an output of this pipeline: each run would start from the one before."""
    folder = Path(backbone.removeprefix(LOCAL_DIR)).resolve()
    written = [path for path in (paths.EXPORT, paths.FINETUNE) if folder.is_relative_to(path.resolve())]
    if backbone.startswith(LOCAL_DIR) and written:
        raise UserError(
            f"backbone.name: {backbone}: this pipeline writes {written[0]} anew at each run. To start from it, copy "
            f"it: mkdir -p backbones && cp -r {written[0]} backbones/first, "
            f"and backbone.name: {LOCAL_DIR}backbones/first"
        )


def _refuse_output_folders(folder: Path) -> None:
    """Raise UserError if the images are where stages write, or the reverse: they would be removed, or be a class."""
    root = folder.resolve()
    for written in (paths.PREPARED, paths.FEATURES, paths.FINETUNE.parent, paths.REPORTS, paths.EXPORT):
        if root.is_relative_to(written.resolve()) or written.resolve().is_relative_to(root):
            raise UserError(
                f"prepare.path: {folder} and {written}, which this pipeline writes, are one within the other: "
                "move the images to a folder of their own, such as data/raw"
            )


def _backbone(params: Params) -> BackboneConfig:
    """Return the whole section, which is checked here, though prepare uses some of its keys alone."""
    return BackboneConfig(**params.record()["backbone"])


def _check_target(catalog: Catalog, reader: Reader) -> Target:
    """Return the target of the good images; raises UserError if there is none to learn."""
    if reader.is_name:
        check_classes(catalog.class_counts(), splits_given=NOT_GIVEN not in catalog.given_counts())
        refuse_untrained_classes(catalog.untrained_classes())
    refuse_none(catalog.count())
    return reader.target(catalog.texts(distinct=True))


def _plan(
    params: Params, source: Source, catalog: Catalog, folder: Path
) -> tuple[dict[str, Any], Packer, list[Choice]]:
    """Return the store's spec, the packer of all images, and what ``auto`` stood for."""
    prepare, given = params.prepare, catalog.given_counts()
    limits = ImageLimits(prepare.max_pixels, prepare.max_aspect_ratio)
    if source.root is not None and prepare.band_files is None:
        _tell_shared_endings(shared_endings(catalog.first(NAMES)))
    sample = catalog.sample(SAMPLE)
    if prepare.channels == "rgb":
        layout, sizes = None, sizes_of(sample, source.read, limits)
    else:
        infos = infos_of(sample, source.read, limits)
        sizes = [(info.width, info.height) for info in infos]
        layout = choose_layout(infos, prepare.channels, prepare.planes)
    config, choices = _input_config(params.backbone, sizes, 3 if layout is None else layout.channels)
    if refusal := FinetuneConfig(**params.record()["finetune"]).augment.refusal(banded=layout is not None):
        raise UserError(refusal)
    if layout is None and params.backbone.rgb:
        raise UserError("backbone.rgb: the images are 8-bit RGB, whose colours are known: set it to null")
    if layout is not None:
        check_keys(layout, prepare.range_pairs, params.backbone.rgb)
        check_backbone(_backbone(params), layout.channels)
        if prepare.store == "jpeg":
            raise UserError(f"prepare.store: jpeg keeps 8-bit RGB alone, and the images have {layout}: write auto")
        if prepare.channels == "auto":
            choices.append(Choice("prepare.channels", layout.channels, f"the images are kept as {layout}"))
            logger.info("%s", choices[-1])
    spec = store_spec(config, prepare.train_scale, "raw", layout)
    training = TrainingResize(spec["train_side"], config["interpolation"])
    resizes = Resizes(training, evaluation_transform(config)[0])
    of_bands = BandResizes(training, Preprocessing.of(config))
    fractions = fractions_to_draw(given, **prepare.split.model_dump())
    estimate = SizeEstimate.of(sizes, resizes, layout)
    size = estimate.total(given, sum(fractions.values()))
    wanted = prepare.store if layout is None else "raw"
    reusable = (kind for kind in STORES if has_reusable_store(folder, paths.PREPARED, spec | {"store": kind}))
    spec["store"] = store = choose_store(wanted, size, folder, previous=next(reusable, None))
    shards = catalog.shards(estimate.shard_images(store, catalog.count()))
    lists = ShardLists.write(folder / "work" / "lists.jsonl", shards)
    rows = index_reusable_rows(folder, paths.PREPARED, spec)
    workers = 0 if source.in_memory else params.run.workers
    how = (resizes, of_bands, layout, fractions, store)
    return spec, Packer(folder, lists, source.read, *how, rows, limits, workers), choices


def _input_config(
    backbone: BackboneConfig, sizes: list[tuple[int, int]], channels: int
) -> tuple[dict[str, Any], list[Choice]]:
    """Return the backbone's ``input_config`` for images of which a sample has these sizes, and what ``auto`` was."""
    is_auto, shorter_side = backbone.image_size == "auto", int(np.median([min(size) for size in sizes or [(0, 0)]]))
    side = choose_side(backbone.name, backbone.args, shorter_side) if is_auto and sizes else backbone.fixed_size
    config = input_config_by_name(backbone.name, side, backbone.args, channels, backbone.rgb)
    _, height, width = config["input_size"]
    if not is_auto or height != width:
        return config, []
    held = f"half of the images have a shorter side of at most {shorter_side} px"
    choice = Choice("backbone.image_size", width, "the backbone's own" if side is None else held)
    logger.info("%s", choice)
    return config, [choice]


def _bad_images(catalog: Catalog, on_bad_image: str) -> list[dict[str, str]]:
    """Return the bad images; raises UserError that lists them if they shall stop the stage."""
    bad = catalog.bad()
    if bad and on_bad_image == "error":
        advice = "Correct or remove them, or set prepare.on_bad_image: skip"
        raise UserError(list_problems(f"prepare: {len(bad)} bad images:", bad, advice))
    return [{"source": name, "problem": problem} for name, problem in bad]


def _decide_splits(
    params: Params, catalog: Catalog, reader: Reader
) -> tuple[Target, Values, NDArray[np.int8], dict[str, Any]]:
    """Return the target, the values of all images, their splits, indices into ``SPLITS``, and the report's counts."""
    target = _check_target(catalog, reader)
    catalog.check_given_splits()
    catalog.check_groups()
    values = target.values(catalog.texts(), catalog.count())
    given, group_ids, contents = catalog.split_inputs()
    strata, fractions = target.strata(values), params.prepare.split.model_dump()
    splits = complete_splits(given, strata, join_groups(group_ids, contents), **fractions)
    target = target.trained(values[splits == TRAIN])
    counts = count_splits(splits, strata) | {"classes": len(target.names), "target": target.kind}
    counts |= {"unknown": _count_unknown(target, values)}
    return target, values, splits, counts | {"duplicates": count_duplicates(contents, splits)}


def _count_unknown(target: Target, values: Values) -> dict[str, int]:
    """Return of how many images each number or label is unknown, without those that are known of all."""
    columns = values.T if values.ndim == 2 else ()  # one at a time: a mask of all values would be large
    counts = {name: int(np.isnan(column).sum()) for name, column in zip(target.names, columns, strict=False)}
    return {name: count for name, count in counts.items() if count}


def _log_summary(target: Target, counts: dict[str, Any], figures: dict[str, Any], bad: list[dict[str, str]]) -> None:
    of_splits = ", ".join(f"{name} {counts['splits'][name]:,} ({counts['shares'][name]:.1%})" for name in SPLITS)
    logger.info("%s images of %d %s: %s", f"{counts['pictures']:,}", len(target.names), target.nouns, of_splits)
    if counts["unknown"]:
        of_each = ", ".join(f"{name} {count:,}" for name, count in counts["unknown"].items())
        logger.info("empty cells, which are unknown: %s", of_each)
    logger.info("{decoded} decoded, {reused} reused, {images_per_second} images/s; {bytes:,} bytes".format(**figures))
    if counts["duplicates"]["across_splits"]:
        logger.info("%s images are in more than one of the given splits", counts["duplicates"]["across_splits"])
    if bad:
        kinds = count_kinds(each["problem"] for each in bad)
        logger.info("%s bad images left out; they are listed in reports/prepare.json: %s", len(bad), kinds)


if __name__ == "__main__":
    main(run, PARAMS)
