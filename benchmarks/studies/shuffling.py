"""What shuffling in windows costs in randomness, in the main process's time, and what it saves in reading.

    python -m benchmarks.studies.shuffling --work FOLDER

Randomness: a store as of ImageNet, 1,000 classes of 1,300 images of 45 KB, one class after the other, in batches of
64: all shuffled with all; whole shards of 1,024 images in random order, so many open at a time and shuffled with each
other; the same with short blocks drawn at random; and with a block of every stratum, as `finetune.shuffle_windows`
has it. Order: µs that the images of a batch take. Reading: a file of so many images below FOLDER, which is not in the
page cache, is read once in the order of an epoch by one thread, each image as training does it, with and without the
kernel being told what comes. Stores that fit no memory are tried in a control group that allows less than the file.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np

from headstart.config.finetune import FinetuneConfig
from headstart.data.shards import INDEX_DTYPE, SHARD_HEADER, Shards, shard_header, shard_path
from headstart.training.datamodule import BLOCK_BYTES, GlobalBatchSampler
from headstart.training.order import EpochOrder, Indices
from headstart.training.resolve import WINDOW_BYTES

CLASSES, A_CLASS, IMAGE_BYTES, BATCH = 1000, 1300, 45_000, 64
COUNT = CLASSES * A_CLASS
WINDOWS = -(-COUNT * IMAGE_BYTES // WINDOW_BYTES)
BLOCK = BLOCK_BYTES // IMAGE_BYTES
SHARD = 1024
SECONDS = 30


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the file that is read is made, and removed")
    parser.add_argument("--images", type=int, default=20_000, help="in that file")
    args = parser.parse_args()
    print_randomness()
    print_order()
    print_reading(args.work, args.images)
    print(f"{os.cpu_count()} cores")


def in_windows(generator: np.random.Generator, block: int, open_at_once: int) -> Indices:
    """Return an order of all images: random blocks of the store, so many shuffled with each other at a time."""
    blocks = np.array_split(np.arange(COUNT), np.arange(block, COUNT, block))
    shuffled = [blocks[i] for i in generator.permutation(len(blocks))]
    windows = (shuffled[i : i + open_at_once] for i in range(0, len(blocks), open_at_once))
    return np.concatenate([generator.permutation(np.concatenate(window)) for window in windows])


def print_randomness() -> None:
    """Print how near the batches, and runs of batches as long as a window, are to those of a full shuffle."""
    generator, every = np.random.default_rng(0), np.arange(COUNT)
    order = EpochOrder(COUNT, 0, WINDOWS, BLOCK)
    short = order.window // BLOCK
    kinds: dict[str, EpochOrder | tuple[int, int]] = {
        "all with all": EpochOrder(COUNT, 0),
        **{f"{shards} shards of {SHARD:,}": (SHARD, shards) for shards in (8, 16, 64)},
        f"{short:,} blocks of {BLOCK}, anywhere": (BLOCK, short),
        f"{short:,} blocks of {BLOCK}, one a stratum": order,
    }
    print("| shuffled | classes in a batch | its entropy, nats | classes missing in a run |", end="")
    print(" deviation of a class's share over runs | the store's neighbours in one batch |\n|---|---|---|---|---|---|")
    steps = order.window // BATCH
    for name, kind in kinds.items():
        images = kind.images(0, every) if isinstance(kind, EpochOrder) else in_windows(generator, *kind)
        labels = (images // A_CLASS)[: COUNT // BATCH * BATCH].reshape(-1, BATCH)
        counts = [np.unique(batch, return_counts=True)[1] / BATCH for batch in labels[::7]]
        entropy = np.mean([-(share * np.log(share)).sum() for share in counts])
        runs = [labels[i : i + steps].ravel() for i in range(0, len(labels) - steps + 1, steps)]
        shares = np.array([np.bincount(run, minlength=CLASSES) for run in runs]) * CLASSES / (steps * BATCH)
        place = np.empty(COUNT, np.int64)
        place[images] = every // BATCH
        met = (place[:-1] == place[1:]).mean() * COUNT / (BATCH - 1)
        row = f"{np.mean([len(each) for each in counts]):.1f} | {entropy:.3f} | {(shares == 0).mean():.1%}"
        print(f"| {name} | {row} | {shares.std():.2f} | {met:,.1f} x |", flush=True)
    print(f"\na run: {steps} batches of {BATCH}; neighbours: times as often as under a full shuffle")


def print_order() -> None:
    """Print what a batch's order takes, beside an array of the whole that is indexed."""
    print("\n| order of 10,000,000 images | µs a batch |\n|---|---|")
    count, finetune = 10**7, FinetuneConfig(batch_size=BATCH)
    array, batches = np.random.default_rng(0).permutation(count), np.arange(2**16).reshape(-1, BATCH)
    began = time.perf_counter()
    for batch in batches:
        array[batch]
    print(f"| an array, indexed | {1e6 * (time.perf_counter() - began) / len(batches):.1f} |")
    for windows in (1, 210):
        sampler = GlobalBatchSampler(EpochOrder(count, 0, windows, BLOCK), finetune, 0, 1, 1)
        drawn = iter(sampler)
        began = time.perf_counter()
        for _ in range(len(batches)):
            next(drawn)
        print(f"| {windows} windows, the whole sampler | {1e6 * (time.perf_counter() - began) / len(batches):.1f} |")


def print_reading(work: Path, count: int) -> None:
    """Print how fast a file is read in the order of an epoch, with and without fetching ahead."""
    work.mkdir(parents=True, exist_ok=True)
    path, noise = shard_path(work, 0), np.random.default_rng(0).bytes(IMAGE_BYTES * 100)
    with path.open("wb") as file:
        file.write(shard_header("raw"))
        for _ in range(0, count, 100):
            file.write(noise)
        os.fsync(file.fileno())
    index = np.zeros(count, INDEX_DTYPE)
    index["offset"], index["bytes"] = SHARD_HEADER + np.arange(count) * IMAGE_BYTES, IMAGE_BYTES
    index["height"], index["width"] = 100, IMAGE_BYTES // 300
    windows = max(2, count * IMAGE_BYTES // (WINDOW_BYTES // 8))
    size = count * IMAGE_BYTES / 1e6
    print(f"\n| reading {size:,.0f} MB | MB/s | read from the disk | waits an image |\n|---|---|---|---|")
    shuffled, windowed = EpochOrder(count, 0), EpochOrder(count, 0, windows, BLOCK)
    for name, order, fetch in (
        ("all with all, as mapped", shuffled, False),
        ("all with all", shuffled, True),
        (f"{windows} windows, as mapped", windowed, False),
        (f"{windows} windows", windowed, True),
    ):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, waits, bytes_read = time.perf_counter(), _waits(), _bytes_read()
        images = _read(Shards(work, index), order, fetch=fetch)
        rate = images * IMAGE_BYTES / 1e6 / (time.perf_counter() - began)
        read, waited = (_bytes_read() - bytes_read) / (images * IMAGE_BYTES), (_waits() - waits) / images
        print(f"| {name} | {rate:.0f} | {read:,.2f} x | {waited:.2f} |", flush=True)
    path.unlink()


def _read(shards: Shards, order: EpochOrder, *, fetch: bool) -> int:
    """Read an epoch, for ``SECONDS`` at most; return the number of images."""
    shards._verified[:] = True  # noqa: SLF001  (the noise has no checksums)
    images, began = order.images(0, np.arange(order.count)), time.perf_counter()
    ahead = order.next_window(0, np.arange(order.count)) if order.windows > 1 else images[:0]
    for start in range(0, order.count, BATCH):
        if fetch:
            shards.prefetch([*ahead[start : start + BATCH].tolist(), *images[start : start + BATCH].tolist()])
        for image in images[start : start + BATCH].tolist():
            shards.pixels(image)[::8].sum()
        if time.perf_counter() - began > SECONDS:
            return start + BATCH
    return order.count


def _waits() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _bytes_read() -> int:
    """Return the bytes that this process has had read from the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


if __name__ == "__main__":
    main()
