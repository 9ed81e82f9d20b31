"""Seconds and memory of every stage as the data set grows.

    python -m benchmarks.scale stages 10000 100000 1000000
    python -m benchmarks.scale tables 1000000 10000000
    python -m benchmarks.scale claims 64 1024

`stages` writes invented images of 64 x 64 pixels into tar shards (WebDataset) and runs every stage up to evaluate on
them, one epoch of a small network in between: seconds, images/s, and the peak memory of the stage and its workers
(PSS). `tables` does what rank 0 does for so many images, without any pixel: the catalog, splits, manifest and index of
prepare, the keys of features, an epoch's batches: seconds, and the peak by which a process grew, in bytes an image.
`claims` simulates how so many ranks, up to three times as fast as others, share the shards of 10^7 and 10^9 images.
"""

import argparse
import hashlib
import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, closing
from heapq import heappop, heappush
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.machine import ROOT
from benchmarks.memory import pss
from headstart.config.finetune import FinetuneConfig
from headstart.config.schema import PrepareConfig
from headstart.core import paths
from headstart.core.text import text_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data.image_info import ImageInfo, PackedImage
from headstart.data.index import Catalog
from headstart.data.packing import SizeEstimate
from headstart.data.shards import ShardEntry
from headstart.data.source_item import Source, SourceItem
from headstart.data.sources import CLASSES as CLASSES_READER
from headstart.distributed import claims
from headstart.distributed.process_group import ProcessGroup
from headstart.features.cache import FeatureCache, image_keys
from headstart.stages import prepare
from headstart.training.datamodule import GlobalBatchSampler
from headstart.training.order import EpochOrder

STAGES = ("prepare", "features", "probe", "finetune", "evaluate")
CLASSES = 10
SIDE = 64
OF_ARCHIVE = 10_000
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {"source": "webdataset:shard-*.tar", "path": "shards", "train_scale": 1.0, "store": "jpeg"},
    "backbone": {"name": "test_resnet", "pretrained": False, "image_size": SIDE},
    "features": {"batch_size": 256},
    "finetune": {"epochs": 1, "batch_size": 256, "precision": "32-true"},
    "evaluate": {"batch_size": 256},
    "run": {"tracking": "disabled", "cache": "cache"},
}


def write_archives(folder: Path, count: int) -> None:
    """Write tar shards of JPEGs with their classes: noise on a colour that tells the class, most of the time."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 196, (CLASSES, 3))
    for number in range(-(-count // OF_ARCHIVE)):
        with tarfile.open(folder / f"shard-{number:06d}.tar", "w") as archive:
            for i in range(number * OF_ARCHIVE, min(count, (number + 1) * OF_ARCHIVE)):
                small = colours[i % CLASSES] + generator.normal(0, 50, (8, 8, 3))
                pixels = np.clip(small, 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file, "JPEG")
                for name, content in ((f"{i:08d}.jpg", file.getvalue()), (f"{i:08d}.cls", str(i % CLASSES).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def measure_stages(count: int) -> list[list[str]]:
    """Run the stages on ``count`` images in a project of its own; return a row of each for the table."""
    write_archives(Path("shards"), count)
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    for section, changes in SETTINGS.items():
        content[section] |= changes
    YAML().dump(content, Path("params.yaml"))
    rows = []
    for stage in STAGES:
        began, peak = time.perf_counter(), 0
        with Path(f"{stage}.txt").open("w") as output:
            process = psutil.Popen([sys.executable, "-m", "headstart", stage], stdout=output, stderr=output)
        while process.poll() is None:
            peak = max(peak, pss(process))
            time.sleep(0.5)
        seconds = time.perf_counter() - began
        assert process.returncode == 0, Path(f"{stage}.txt").read_text()
        rows.append([f"{count:,}", stage, f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{peak / 1e6:,.0f}"])
        print("  ".join(rows[-1]), flush=True)
    return rows


def prepare_tables(count: int) -> None:
    """Do rank 0's part of ``prepare``: list, record what was packed, decide on the splits, write manifest and index."""

    def name(i: int) -> str:
        return f"shard-{i // OF_ARCHIVE:06d}.tar/{i:08d}.jpg"

    def packed() -> Iterator[PackedImage]:
        for i in range(count):
            content = hashlib.sha256(i.to_bytes(8)).hexdigest()
            entry = ShardEntry(i // 1024, i % 1024 * 12288, 12288, i, SIDE, SIDE)
            info = ImageInfo(SIDE, SIDE, content[:16], 50.0)
            yield PackedImage(name(i), None, content, info, True, True, entry)  # noqa: FBT003

    class Invented(Source):
        """Lists images that are nowhere."""

    paths.PREPARED.mkdir(parents=True)
    params: Any = type("Params", (), {"prepare": PrepareConfig()})
    with closing(Catalog(Path("catalog.sqlite"))) as catalog:
        catalog.add(SourceItem(name(i), str(i % CLASSES)) for i in range(count))
        catalog.record(packed())
        catalog.reject_conflicting_labels()
        target, values, splits, _ = prepare._decide_splits(params, catalog, CLASSES_READER)  # noqa: SLF001
        spec: dict[str, Any] = {"input": {}, "train_side": None, "store": "raw", "pillow": "", "pixels_version": 3}
        about: dict[str, Any] = {"target": target, "values": values, "splits": splits}
        prepare._write_dataset(paths.PREPARED, Invented, catalog, spec, **about)  # type: ignore[arg-type]  # noqa: SLF001


def feature_keys(_: int) -> None:
    """Compute the keys of all images from the manifest, and fill a cache with a half of them, then with the other."""
    keys, cache = image_keys(PreparedDataset.open()), FeatureCache(Path("cache"), {}, 1, "float32")

    def fill(most: int) -> None:
        missing = cache.missing(keys)[:most]
        for first in range(0, len(missing), 1024):
            places = missing[first : first + 1024]
            cache.add(keys[places], np.zeros((len(places), 1)))
        cache.refresh()

    fill(len(keys) // 2)
    fill(len(keys))
    assert not len(cache.missing(keys))


def epoch_batches(_: int) -> None:
    """Draw every global batch of an epoch."""
    prepared = PreparedDataset.open()
    rows, labels = prepared.rows("train"), read_values("train")
    seen = 0
    for spec in GlobalBatchSampler(EpochOrder(len(rows), 0), FinetuneConfig(), 0, 1, 1):
        seen += len(labels[spec.indices])
    assert seen > len(rows) - FinetuneConfig().batch_size


PARTS: dict[str, Callable[[int], None]] = {
    "prepare: catalog, splits, manifest, index": prepare_tables,
    "features: keys and cache": feature_keys,
    "finetune: an epoch's batches": epoch_batches,
}


def in_a_process_of_its_own(part: Callable[[int], None], count: int) -> tuple[float, int]:
    """Return the seconds of a part, and the bytes by which a new process grew at its peak."""

    def measured(connection: Any) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        part(count)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        connection.send((time.perf_counter() - began, 1024 * grown))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=measured, args=(there,))
    process.start()
    there.close()
    seconds, grown = here.recv()
    process.join()
    return seconds, grown


def measure_tables(count: int) -> list[list[str]]:
    """Return a row for each part."""
    rows = []
    for name, part in PARTS.items():
        seconds, grown = in_a_process_of_its_own(part, count)
        rows.append([f"{count:,}", name, f"{seconds:.1f}", f"{1e6 * seconds / count:.1f}", f"{grown / count:.0f}"])
        print("  ".join(rows[-1]), flush=True)
    return rows


def simulate_claims(ranks: int) -> list[list[str]]:
    """Share tasks among ranks that are up to three times as fast as others; return a row for each number of images."""
    return [_simulated(ranks, images) for images in (10**7, 10**9)]


def _simulated(ranks: int, images: int) -> list[str]:
    count = -(-images // SizeEstimate(3.0 * SIDE**2, 3.0 * SIDE**2).shard_images("raw", images))
    claimed, calls = set[int](), Counter[str]()

    def claim(_: Path, task: int) -> bool:
        new = task not in claimed
        calls["created" if new else "too late"] += 1
        claimed.add(task)
        return new

    def list_claimed(_: Path) -> set[int]:
        calls["listed"] += 1
        return claimed

    with patch.multiple(claims, _claim=claim, _claimed=list_claimed):
        generator = np.random.default_rng(0)
        speeds = generator.uniform(1, 3, ranks)
        working = [(0.0, rank, claims.claim_tasks(count, _Rank(rank, ranks))) for rank in range(ranks)]
        end = 0.0
        while working:
            now, rank, tasks = heappop(working)
            if next(tasks, None) is None:
                end = max(end, now)
            else:
                heappush(working, (now + generator.uniform(0.8, 1.2) / speeds[rank], rank, tasks))
    perfect = count / speeds.sum()
    row = [f"{images:,}", f"{ranks:,}", f"{count:,}", f"{end / perfect:.3f}", f"{count / ranks / perfect:.2f}"]
    row += [f"{calls['too late'] / ranks:.1f}", f"{calls['listed'] / ranks:.1f}"]
    print("  ".join(row), flush=True)
    return row


class _Rank(ProcessGroup):
    """A simulated rank, which knows the folder."""

    def broadcast_from_rank_zero(self, _: Any) -> Any:
        return Path()


HEADS = {
    "claims": (
        simulate_claims,
        [
            "images",
            "ranks",
            "shards",
            "time / perfect",
            "fixed parts / perfect",
            "late claims a rank",
            "listings a rank",
        ],
    ),
    "stages": (measure_stages, ["images", "stage", "s", "images/s", "peak MB"]),
    "tables": (measure_tables, ["images", "part", "s", "µs an image", "bytes an image"]),
}


def main() -> None:
    """Measure one part for each count, in a temporary folder each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=HEADS)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--work", type=Path, help="where temporary folders are made")
    args = parser.parse_args()
    measure, head = HEADS[args.part]
    rows = []
    for count in args.counts:
        with tempfile.TemporaryDirectory(dir=args.work) as work, chdir(work):
            rows += measure(count)
    print(text_table([head, *rows]))


if __name__ == "__main__":
    main()
