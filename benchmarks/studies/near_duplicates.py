"""Measure how many of all near-duplicates approximate nearest neighbours find, by faiss, usearch and hnswlib.

    python -m benchmarks.studies.near_duplicates
    python -m benchmarks.studies.near_duplicates --images 10000000 --width 32 --only-ours

Needs `pip install usearch hnswlib` beside Headstart; what is not installed is left out. The features are invented:
images of 4,000 scenes in 200 classes, of --own dimensions, mixed into --width and put through a ReLU. A twentieth are
altered copies of others, from hardly altered to beyond recognition. The truth is what comparing all pairs finds, beyond
the threshold that the data check derives. Seconds are those of the processor, with OMP_NUM_THREADS=1 of one thread. The
data check is measured whole, with hashes and thresholds; the others build an index of the images held out and look each
training image up.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from headstart.core.text import text_table
from headstart.data_checks import duplicates as check
from headstart.data_checks.duplicates import NEIGHBOURS, ReadRows, find_duplicates

SCENES, CLASSES = 4000, 200
COPIES = 0.05
SPLITS = [0.7, 0.15, 0.15]
BLOCK = 4096
Vectors = NDArray[np.float32]
"""Float32 (n, width)."""
Places = NDArray[np.int64]
"""Int64 (n, NEIGHBOURS): of the nearest ones to each of n images; negative where there are fewer."""


def invent(path: Path, images: int, width: int, own: int) -> NDArray[np.float16]:
    """Write features of so many images, of ``own`` dimensions before they are mixed into ``width``, and open them."""
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((own, width), np.float32) / np.float32(np.sqrt(own))
    classes = generator.standard_normal((CLASSES, own), np.float32)
    scenes = generator.standard_normal((SCENES, own), np.float32) * 0.6 + classes[np.arange(SCENES) % CLASSES]
    features = np.lib.format.open_memmap(path, "w+", np.float16, (images, width))
    copies = int(images * COPIES)
    for start in range(0, images, BLOCK):
        rows = np.arange(start, min(start + BLOCK, images))
        noise = generator.standard_normal((len(rows), own), np.float32)
        spread = generator.lognormal(0, 0.3, (len(rows), 1)).astype(np.float32)
        own_values = scenes[generator.integers(0, SCENES, len(rows))] + 0.8 * spread * noise
        features[rows] = np.maximum(own_values @ mix, 0)
    originals = generator.choice(images - copies, copies, replace=False)
    for start in range(0, copies, BLOCK):
        some = originals[start : start + BLOCK]
        strength = 10 ** generator.uniform(-2.5, 0, (len(some), 1)).astype(np.float32)
        altered = features[some] + strength * generator.standard_normal((len(some), width), np.float32) / 2
        features[images - copies + start :][: len(some)] = np.maximum(altered, 0)
    features.flush()
    return features


def ours(read: ReadRows, splits: NDArray[np.int8], *, all_pairs: bool) -> tuple[set[tuple[int, int]], float]:
    """Return the pairs near by cosine that the data check finds, and the threshold."""
    check.ALL_PAIRS_UP_TO = len(splits) if all_pairs else 0
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, len(splits), dtype=np.uint64)
    found = find_duplicates(read, hashes, np.arange(len(splits), dtype=np.uint64), splits, len(splits))
    return {(pair.row, pair.other_row) for pair in found.pairs if pair.cosine >= found.cosine}, found.cosine


def of_faiss(indexed: Vectors, asking: Vectors, searched: int) -> Places:
    """Look the nearest ones up as the data check does, in so many cells of an inverted file."""
    centres = faiss.IndexFlatL2(indexed.shape[1])
    cells = int(4 * np.sqrt(len(indexed)))
    index = faiss.IndexIVFScalarQuantizer(centres, indexed.shape[1], cells, faiss.ScalarQuantizer.QT_fp16)
    index.cp.min_points_per_centroid, index.nprobe = 1, searched
    index.train(indexed[:: max(1, len(indexed) // (cells * check.IMAGES_PER_CELL))])
    index.add(indexed)
    return np.asarray(index.search(asking, NEIGHBOURS)[1])


def of_usearch(indexed: Vectors, asking: Vectors) -> Places:
    """Look them up in a graph (HNSW) of 16-bit vectors, with usearch's own settings."""
    from usearch.index import Index  # noqa: PLC0415  (it may not be installed)

    index = Index(ndim=indexed.shape[1], metric="l2sq", dtype="f16")
    index.add(np.arange(len(indexed)), indexed, threads=1)
    return np.asarray(index.search(asking, NEIGHBOURS, threads=1).keys, np.int64)


def of_hnswlib(indexed: Vectors, asking: Vectors) -> Places:
    """Look them up in a graph (HNSW) of 32-bit vectors, with the settings of hnswlib's own examples."""
    import hnswlib  # noqa: PLC0415  (it may not be installed)

    index = hnswlib.Index("l2", indexed.shape[1])
    index.init_index(len(indexed), ef_construction=200, M=16, random_seed=0)
    index.add_items(indexed, num_threads=1)
    index.set_ef(50)
    return np.asarray(index.knn_query(asking, NEIGHBOURS, num_threads=1)[0], np.int64)


def compare(features: NDArray[np.float16], splits: NDArray[np.int8], *, only_ours: bool) -> Iterator[list[str]]:
    """Yield what each finds of all near-duplicates: its name, recall, processor seconds."""

    def read(rows: NDArray[np.int64]) -> Vectors:
        return np.asarray(features[rows], np.float32)

    began = time.process_time()
    if only_ours:
        pairs, cosine = ours(read, splits, all_pairs=False)
        yield [f"the data check: {len(pairs)} pairs from {cosine:.4f}", "", f"{time.process_time() - began:.1f}"]
        return
    true, cosine = ours(read, splits, all_pairs=True)
    yield [f"all pairs: {len(true)} from {cosine:.4f}", "1", f"{time.process_time() - began:.1f}"]
    began = time.process_time()
    pairs, _ = ours(read, splits, all_pairs=False)
    yield ["the data check", f"{len(pairs & true) / len(true):.4f}", f"{time.process_time() - began:.1f}"]

    train, held_out = np.flatnonzero(splits == 0), np.flatnonzero(splits != 0)
    true = {pair for pair in true if splits[pair[0]] == 0}
    unit = read(np.arange(len(splits)))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    projection = np.random.default_rng(0).standard_normal((unit.shape[1], check.DIMENSIONS), np.float32)
    projected = unit @ (projection / np.float32(np.sqrt(check.DIMENSIONS)))
    contestants: dict[str, Callable[[Vectors, Vectors], Places]] = {
        f"faiss, {n} cells": partial(of_faiss, searched=n) for n in (1, 4, check.CELLS_SEARCHED)
    }
    contestants |= {name: look_up for name, look_up in OTHERS.items() if find_spec(name)}
    for (name, look_up), (what, vectors) in product(
        contestants.items(), {"projected": projected, "whole": unit}.items()
    ):
        began = time.process_time()
        places = look_up(vectors[held_out], vectors[train])
        seconds = time.process_time() - began
        number, column = np.nonzero((places >= 0) & (places < len(held_out)))
        rows, others = train[number], held_out[places[number, column]]
        found = set()
        for start in range(0, len(rows), BLOCK):
            some, each = rows[start : start + BLOCK], others[start : start + BLOCK]
            near = np.einsum("ij,ij->i", unit[some], unit[each]) >= cosine
            found |= set(zip(some[near].tolist(), each[near].tolist(), strict=True))
        yield [f"{name}, {what}", f"{len(found & true) / len(true):.4f}", f"{seconds:.1f}"]


OTHERS = {"usearch": of_usearch, "hnswlib": of_hnswlib}


def main() -> None:
    """Invent the features, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--own", type=int, default=32, help="dimensions that the scenes have (default: %(default)s)")
    parser.add_argument("--only-ours", action="store_true", help="no truth: time and memory alone")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    versions = {name: version(name) for name in ("faiss-cpu", *filter(find_spec, OTHERS))}
    with tempfile.TemporaryDirectory() as folder:
        features = invent(Path(folder) / "features.npy", args.images, args.width, args.own)
        splits = np.random.default_rng(1).choice(len(SPLITS), args.images, p=SPLITS).astype(np.int8)
        before = peak_mb()
        rows = list(compare(features, splits, only_ours=args.only_ours))
    print(vars(args), versions)
    print(text_table([["found by", "of all pairs", "seconds"], *rows]))
    print(f"peak memory {peak_mb()} MB, {before} MB of it before the comparison")


def peak_mb() -> int:
    """Return the most memory that this process had (Linux counts it in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)


if __name__ == "__main__":
    main()
