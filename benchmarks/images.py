"""The benchmarks' images: JPEGs of quality 90 in train/, val/ and test/, one folder per class, created once."""

import hashlib
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.task import CLASSES

HELD_OUT = 2 * CLASSES  # images of validation, and of test: few, since training is what is timed
SHIFTS = 16
ENDINGS = {".jpg", ".jpeg", ".png"}
Image.init()


def make_images(work: Path, source: Path | None, count: int, size: tuple[int, int]) -> Path:
    """Return the folder of ``count`` training images; those of an earlier run are reused.

    Args:
        work: where the folder is created.
        source: a folder with photographs somewhere below, resized; None for synthetic ones.
        count: training images.
        size: width and height, in pixels.
    """
    name = "invented" if source is None else hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    folder = work / f"pictures-{name}-{size[0]}x{size[1]}-{count}"
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}")
    drawn = islice(_synthetic(size) if source is None else _resized(source, size), count + 2 * HELD_OUT)
    written = 0
    for i, image in enumerate(drawn):
        split = "test" if i < HELD_OUT else "val" if i < 2 * HELD_OUT else "train"
        target = temporary / split / f"class{i % CLASSES}" / f"{i:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)
        written += 1
    if written < count + 2 * HELD_OUT:
        sys.exit(f"error: {source} has {written} images, and {count + 2 * HELD_OUT} are needed: see --count")
    return temporary.rename(folder)


def mean_bytes(folder: Path) -> int:
    """Return the mean size of the training files."""
    sizes = [path.stat().st_size for path in folder.glob("train/*/*")]
    return round(sum(sizes) / len(sizes))


def _resized(source: Path, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield photographs in a fixed random order."""
    paths = [path for path in source.rglob("*") if path.suffix.lower() in ENDINGS]
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        with Image.open(path) as image:
            yield image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _synthetic(size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield noise whose spectrum decreases with the frequency like that of photographs.

    Of each noise ``SHIFTS`` images are made, shifted in a circle, which changes no spectrum and costs less.
    """
    rng = np.random.default_rng(0)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / max(size)
    while True:
        grey, *colours = (np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.5, (height, width)) for noise in (
            rng.normal(size=(4, height, width))
        ))  # fmt: skip
        channels = np.stack([grey + 0.3 * colour for colour in colours], axis=2)
        pixels = np.clip(128 + 55 * channels / channels.std(), 0, 255).astype(np.uint8)
        for shift in range(SHIFTS):
            yield Image.fromarray(np.roll(pixels, (shift * height // SHIFTS, shift * width // SHIFTS), axis=(0, 1)))
