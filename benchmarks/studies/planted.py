"""Plant faults in a copy of a folder of photographs, and count what the data checks find of them.

    python -m benchmarks.studies.planted FOLDER

FOLDER holds one folder a class, somewhere below it, such as Imagenette's train/ and val/. Its images are dealt to
train, validation and test (70, 15, 15 %). Planted: 50 altered copies of training images, in validation and test, five
of each kind of alteration; 50 swapped labels in all splits. Then prepare, features and probe run, and the labels of
test are looked at as evaluate does it. What is found without having been planted counts as a false alarm, though some
of it is a fault of the folder's own.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from ruamel.yaml import YAML
from scipy.special import softmax

from benchmarks.machine import ROOT
from headstart.config.loader import parse_params
from headstart.core import paths
from headstart.core.io import read_json, read_table
from headstart.core.text import text_table
from headstart.data.dataset import PreparedDataset, read_values
from headstart.data_checks.tables import write_label_errors
from headstart.features.cache import read_features
from headstart.models.head import read_head
from headstart.stages import features, prepare, probe
from headstart.targets.likelihood import fit_temperature

COPIES_A_KIND, SWAPS = 5, 50
SPLITS = {"train": 0.7, "val": 0.15, "test": 0.15}


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


def _marked(image: Image.Image) -> Image.Image:
    marked = image.copy()
    ImageDraw.Draw(marked).text((8, 8), "(c) somebody", fill="white", font_size=max(10, image.height // 12))
    return marked


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 30": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "edges cropped by 5 %": _cropped,
    "brighter by a third": lambda image: ImageEnhance.Brightness(image).enhance(1.33),
    "darker by a third": lambda image: ImageEnhance.Brightness(image).enhance(0.67),
    "turned by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "watermark": _marked,
    "grey": lambda image: image.convert("L"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
}


def deal(folder: Path, raw: Path, generator: np.random.Generator) -> None:
    """Link or copy the images into train/, val/ and test/ of ``raw``, one folder a class."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    splits = generator.choice(list(SPLITS), len(paths), p=list(SPLITS.values()))
    for path, split in zip(paths, splits, strict=True):
        target = raw / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def plant_copies(raw: Path, generator: np.random.Generator) -> dict[frozenset[str], str]:
    """Save altered copies of training images; give the pairs of sources with the kind of alteration."""
    originals = sorted((raw / "train").glob("*/*"))
    chosen = generator.choice(len(originals), COPIES_A_KIND * len(ALTERED), replace=False)
    planted = {}
    for i, place in enumerate(chosen):
        kind = list(ALTERED)[i % len(ALTERED)]
        original = originals[place]
        copy = raw / ("val", "test")[i // len(ALTERED) % 2] / original.parent.name / f"copy-{i}.jpg"
        with Image.open(original) as image:
            quality = 30 if kind == "JPEG quality 30" else 90
            ALTERED[kind](image.convert("RGB")).save(copy, quality=quality)
        planted[frozenset(str(path.relative_to(raw)) for path in (original, copy))] = kind
    return planted


def swap_labels(raw: Path, generator: np.random.Generator) -> set[str]:
    """Move images to another class of their split; give their sources."""
    paths = [path for path in sorted(raw.glob("*/*/*")) if not path.name.startswith("copy-")]
    classes = sorted({path.parent.name for path in paths})
    swapped = set()
    for place in generator.choice(len(paths), SWAPS, replace=False):
        path = paths[place]
        other = generator.choice([name for name in classes if name != path.parent.name])
        target = path.parent.parent / other / f"moved-{path.name}"
        path.rename(target)
        swapped.add(str(target.relative_to(raw)))
    return swapped


def run_stages() -> None:
    """Run them in the current folder, and the check of test's labels."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["prepare"] |= {"source": "imagefolder"}
    content["probe"] |= {"heads": []}
    content["run"] |= {"tracking": "disabled", "cache": "cache"}
    params = parse_params(content)
    for stage in (prepare, features, probe):
        stage.run(params.declared(stage.PARAMS))
    prepared, labels = PreparedDataset.open(), read_values("test")
    rows = prepared.rows("test")
    logits = {split: read_head().logits(read_features(prepared.rows(split))) for split in ("validation", "test")}
    temperature = fit_temperature(prepared.target, logits["validation"], read_values("validation"))
    found = prepared.target.find_errors(labels, [softmax(logits["test"] / temperature, axis=1)])
    write_label_errors(Path("test_labels.csv"), prepared, rows, found)


def report(copies: dict[frozenset[str], str], swapped: set[str]) -> None:
    """Print recall and precision, of copies by kind and of labels by split."""
    pairs = {frozenset((row["source"], row["other_source"])) for row in read_table(paths.DUPLICATES)}
    kinds = [(kind, {pair for pair, each in copies.items() if each == kind}) for kind in ALTERED]
    rows = [[kind, f"{len(planted & pairs)} of {len(planted)}"] for kind, planted in kinds]
    hits = len(set(copies) & pairs)
    rows += [["all copies", f"{hits} of {len(copies)}"], ["pairs found", str(len(pairs))]]
    print(text_table([["altered copies", "found"], *rows]))
    print(f"recall {hits / len(copies) if copies else 1:.2f}, precision {hits / max(1, len(pairs)):.2f}")
    for pair in pairs - set(copies):
        print("  not planted:", *sorted(pair))

    tables = {"train, validation": paths.FEATURE_LABEL_ERRORS, "test": Path("test_labels.csv")}
    for split, table in tables.items():
        found = {row["source"] for row in read_table(table)}
        planted = {source for source in swapped if source.startswith("test/") == (split == "test")}
        hits = len(found & planted)
        print(f"labels of {split}: {hits} of {len(planted)} swapped ones found, {len(found)} suspicious in all")
    print({key: read_json(Path("reports/features.json"))[key] for key in ("near_duplicate_cosine", "check_seconds")})


def main() -> None:
    """Deal, plant, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of what is planted where (default: %(default)s)")
    parser.add_argument(
        "--clean", action="store_true", help="plant nothing: what is found is all false, or the folder's"
    )
    args = parser.parse_args()
    folder, generator = args.folder.resolve(), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name, chdir(name):
        raw = Path("data/raw")
        deal(folder, raw, generator)
        copies = {} if args.clean else plant_copies(raw, generator)
        swapped = set() if args.clean else swap_labels(raw, generator)
        run_stages()
        report(copies, swapped)


if __name__ == "__main__":
    main()
