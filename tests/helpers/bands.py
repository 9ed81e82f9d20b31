"""Images with bands: their ranges, and data/prepared made of them."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np

from headstart.core.io import read_json, write_json
from headstart.core.paths import PREPARED
from headstart.data.dataset import PreparedDataset
from headstart.data.shards import SHARD_HEADER, checksum, shard_path, write_index
from headstart.images.bands import Bands, Depth, PixelLayout, Pixels

RANGES: dict[Depth, tuple[float, float]] = {
    "uint8": (10.0, 240.0),
    "uint16": (100.0, 60_000.0),
    "int16": (-1000.0, 3000.0),
    "float32": (-0.25, 1.5),
}
"""What lies between the low and the high end of a band, by depth."""


def bands_of(dtype: Depth, channels: int) -> Bands:
    """Return bands whose ranges begin the higher the later they are, and whose means and deviations differ."""
    low, high = RANGES[dtype]
    each = np.arange(channels) / (4 * channels)
    lows, means, deviations = (tuple(values.tolist()) for values in (low + (high - low) * each, 0.3 + each, 0.2 + each))
    return Bands(PixelLayout(channels, dtype), lows, (high,) * channels, means, deviations, shown=(0,))


def random_pixels(height: int, width: int, channels: int, dtype: Depth, seed: int = 0) -> Pixels:
    """Return noise of a depth, a fifth of it beyond the range of ``bands_of``."""
    low, high = RANGES[dtype]
    values = np.random.default_rng(seed).uniform(low, high + (high - low) / 4, (height, width, channels))
    if dtype == "float32":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(np.clip(values, limits.min, limits.max)).astype(dtype)


def give_bands(prepared: PreparedDataset, dtype: Depth, channels: int) -> PreparedDataset:
    """Write the images of data/prepared anew, as noise of this depth that many bands have."""
    bands, index = bands_of(dtype, channels), np.array(prepared._shards.index)  # noqa: SLF001  (it has no other door)
    about = json.dumps({"headstart_shard": 1, "store": "raw", "dtype": dtype, "channels": channels})
    with shard_path(PREPARED, 0).open("wb") as shard:
        shard.write(about.ljust(SHARD_HEADER - 1).encode() + b"\n")
        for i, entry in enumerate(index):
            content = random_pixels(entry["height"], entry["width"], channels, dtype, i).tobytes()
            entry["offset"], entry["bytes"], entry["crc32"] = shard.tell(), len(content), crc32(content)
            shard.write(content)
    write_index(PREPARED, [entry.item() for entry in index], len(index))
    dataset = read_json(PREPARED / "dataset.json")
    size = dataset["input"]["input_size"][1:]
    dataset["input"] |= {"input_size": [channels, *size], "mean": list(bands.mean), "std": list(bands.std)}
    dataset |= {"bands": bands.record(), "shard_bytes": [shard_path(PREPARED, 0).stat().st_size]}
    dataset["crc32"] |= {"index.npy": checksum(Path(PREPARED, "index.npy"))}
    write_json(PREPARED / "dataset.json", dataset)
    return PreparedDataset.open()
