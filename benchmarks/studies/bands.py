"""Images with bands: what 8-bit RGB loses, real sets, the parity of files and logits, and rates against peers.

    python -m benchmarks.studies.bands planted --seeds 0 1 2
    python -m benchmarks.studies.bands real --eurosat FOLDER --ct FOLDER --seeds 0 1 2
    python -m benchmarks.studies.bands gate --count 200
    python -m benchmarks.studies.bands rates --peers PYTHON --rounds 5

`planted` draws sets whose two classes differ in one property that 8-bit RGB does not have, and reads them as they are
and as RGB. `real` takes EuroSAT's TIFFs of 13 bands, a folder a class, and slices of CT as DICOM files, a folder a
class, of which no patient is in two splits. A seed draws the images or the splits, and the training. `gate` makes files
of each kind, and compares a model from these bytes to its logits on two ways: through prepare and timm, and as
`predict` reads and ONNX Runtime computes them. `rates` needs an interpreter with torchgeo and tifffile.
"""

import argparse
import contextlib
import csv
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import onnxruntime
import pydicom
import tifffile
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, SecondaryCaptureImageStorage
from scipy.ndimage import gaussian_filter

from benchmarks.rounds import ALLOCATOR, Contestant, run_rounds, table
from benchmarks.task import Task
from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.text import text_table
from headstart.data.band_files import split_names
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import sources_and_splits
from headstart.data.sources import open_source
from headstart.export.bundle_writer import write_bundle
from headstart.export.model_card import ModelCardInfo
from headstart.images.arrays import read_array
from headstart.images.bands import Pixels
from headstart.models.backbone import backbone_for, get_head
from headstart.predict import Predictor
from headstart.stages import evaluate, features, finetune, prepare, probe

Draw = Callable[[int, np.random.Generator], Pixels]
SIDE = 64
CLASSES = ("coarse", "fine")
PLANTED_IMAGES = 300
EPOCHS = 8
PLAIN: dict[str, dict[str, Any]] = {
    "features": {"checks": {"duplicates": False, "labels": False}},
    "probe": {"heads": []},
    "finetune": {
        "epochs": EPOCHS,
        "batch_size": 16,
        "precision": "32-true",
        "augment": {"hflip": 0.5, "vflip": 0.5, "quarter_turn": 0.0},
    },
    "run": {"tracking": "disabled", "cache": "cache", "workers": 0},
}


def texture(generator: np.random.Generator, height: int, width: int, *grains: float) -> NDArray[np.float64]:
    """Return smooth noise (height, width) of mean 0 and deviation 1: a sum of equal shares of these grains in px."""
    noise = np.stack([gaussian_filter(generator.normal(size=(height, width)), each, mode="wrap") for each in grains])
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    total: NDArray[np.float64] = (noise / noise.std(axis=(1, 2), keepdims=True)).sum(axis=0)
    total /= total.std()
    return total


def band_4(told: int, generator: np.random.Generator) -> Pixels:
    """Draw colours, and a fourth band (infrared) whose grain alone tells the class."""
    scene = texture(generator, SIDE, SIDE, 1, 4, 12)
    bands = [120 + 30 * scene + 12 * texture(generator, SIDE, SIDE, 2, 6) for _ in range(3)]
    bands.append(120 + 30 * texture(generator, SIDE, SIDE, (4, 2)[told]))
    return np.clip(np.rint(np.stack(bands, axis=2)), 0, 255).astype(np.uint8)


def low_byte(told: int, generator: np.random.Generator) -> Pixels:
    """Draw a scene around 20 °C in hundredths of a kelvin, as a thermal camera does: its high byte is one number."""
    scene = 29_298 + 40 * texture(generator, SIDE, SIDE, (4, 2)[told])
    return np.clip(np.rint(scene), 29_298 - 127, 29_298 + 127).astype(np.uint16)[..., None]


def sign(told: int, generator: np.random.Generator) -> Pixels:
    """Draw heights around 0, with peaks in one class and with pits in the other."""
    peaks = np.exp(0.8 * texture(generator, SIDE, SIDE, 2, 5))
    heights: Pixels = np.rint(300 * (1 - 2 * told) * (peaks - peaks.mean())).astype(np.int16)
    return heights[..., None]


PLANTED: dict[str, tuple[str, Draw]] = {
    "the fourth band (4 bands of uint8)": ("rgb", band_4),
    "the low byte (uint16)": ("minisblack", low_byte),
    "the sign (int16)": ("minisblack", sign),
}


def run_stages(project: Path, changes: Mapping[str, Mapping[str, Any]], seed: int) -> tuple[float, float] | str:
    """Run the stages up to evaluate; return test accuracies of probe and fine-tuning, or why prepare refused."""
    seeded = {**PLAIN, "finetune": {**PLAIN["finetune"], "seed": seed}}
    params = parse_params({**seeded, **changes}, partial=True)
    with contextlib.chdir(project), (project / "log").open("a") as log, contextlib.redirect_stdout(log):
        try:
            prepare.run(params.declared(prepare.PARAMS))
        except UserError as error:
            return str(error)
        for stage in (features, probe, finetune, evaluate):
            stage.run(params.declared(stage.PARAMS))
        models = read_json(paths.report_of("evaluate"))["models"]
    return models["probe"]["accuracy"], models["finetune"]["accuracy"]


def cells_of(results: Sequence[tuple[float, float] | str]) -> list[str]:
    """Return the table's cells: means over the seeds, in percent, with the range; or why there are none."""
    figures = [each for each in results if not isinstance(each, str)]
    if len(figures) < len(results):
        print(*{each for each in results if isinstance(each, str)}, sep="\n", file=sys.stderr)
        return ["refused", "refused"]
    return [
        f"{100 * np.mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"
        for values in zip(*figures, strict=True)
    ]


def measure_planted(work: Path, seeds: Sequence[int]) -> None:
    """Print test accuracy by what tells the class, with bands and as RGB."""
    lines = [["what tells the class", "read as", "probe, %", "fine-tuning, %"]]
    for name, (photometric, draw) in PLANTED.items():
        for channels in ("auto", "rgb"):
            results = []
            for seed in seeds:
                project = work / f"{draw.__name__}-{channels}-{seed}"
                generator = np.random.default_rng(seed)
                for i in range(PLANTED_IMAGES):
                    path = project / "data/raw" / CLASSES[i % 2] / f"{i}.tif"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # As drones write it: three colours, and a band of which nothing is said.
                    extra: dict[str, Any] = {"extrasamples": ("unspecified",)} if photometric == "rgb" else {}
                    pixels = draw(i % 2, generator).squeeze()
                    tifffile.imwrite(path, pixels, photometric=photometric, planarconfig="contig", **extra)
                settings: dict[str, Any] = {"source": "imagefolder", "path": "data/raw", "channels": channels}
                settings["split"] = {"validation": 0.15, "test": 0.3}
                results.append(run_stages(project, {"prepare": settings}, seed))
            lines.append([name, "it is" if channels == "auto" else "8-bit RGB", *cells_of(results)])
            print("  ".join(lines[-1]), flush=True)
    print(text_table(lines))


class RealSet(NamedTuple):
    """Files of a set with their labels, and the groups of which none may be in two splits."""

    files: list[Path]
    labels: list[str]
    groups: list[str]


@dataclass(frozen=True)
class Variant:
    """A way to have a set's images: ``write`` makes a file of one and returns its name; ``changes`` are of params."""

    write: Callable[[Path, Path], str]
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def copy(source: Path, target: Path) -> str:
    """Copy the file as it is."""
    path = target.with_suffix(source.suffix)
    shutil.copy(source, path)
    return path.name


def eurosat_rgb(source: Path, target: Path) -> str:
    """Write B4, B3, B2 with 8 bits, reflectances up to 0.275."""
    colours = tifffile.imread(source)[..., [3, 2, 1]] / 2750
    Image.fromarray(np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)).save(target.with_suffix(".png"))
    return target.with_suffix(".png").name


def eurosat_colours(source: Path, target: Path) -> str:
    """Write B4, B3, B2 with 16 bits."""
    path = target.with_suffix(".tif")
    tifffile.imwrite(path, tifffile.imread(source)[..., [3, 2, 1]], photometric="rgb")
    return path.name


def ct_png(source: Path, target: Path) -> str:
    """Write a slice with 8 bits from its least to its largest value, as scripts that convert DICOM do."""
    values = pydicom.dcmread(source).pixel_array.astype(np.float64)
    levels = 255 * (values - values.min()) / (values.max() - values.min())
    Image.fromarray(np.rint(levels).astype(np.uint8)).save(target.with_suffix(".png"))
    return target.with_suffix(".png").name


EUROSAT = {
    "8-bit RGB": Variant(eurosat_rgb),
    "B4, B3, B2 as uint16": Variant(eurosat_colours, {"backbone": {"rgb": [1, 2, 3]}}),
    "13 bands of uint16": Variant(copy),
    "13 bands, rgb: [4, 3, 2]": Variant(copy, {"backbone": {"rgb": [4, 3, 2]}}),
}
CT = {
    "8-bit PNG": Variant(ct_png),
    "DICOM": Variant(copy),
    "DICOM, range: [-160, 240]": Variant(copy, {"prepare": {"range": [-160, 240]}}),
}


def find_set(folder: Path, suffix: str, group: Callable[[Path], str]) -> RealSet:
    """Return the files of a folder with a folder a class."""
    files = sorted(folder.glob(f"*/*{suffix}"))
    return RealSet(files, [each.parent.name for each in files], [group(each) for each in files])


def draw_splits(groups: Sequence[str], seed: int) -> list[str]:
    """Draw 30 % of the images for test and 20 % for validation, whole groups at a time."""
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    counts = np.cumsum([groups.count(each) for each in order]) / len(groups)
    split_of = {each: "test" if end <= 0.3 else "validation" if end <= 0.5 else "train"
                for each, end in zip(order.tolist(), counts.tolist(), strict=True)}  # fmt: skip
    return [split_of[each] for each in groups]


def measure_real(work: Path, seeds: Sequence[int], eurosat: Path | None, ct: Path | None) -> None:
    """Print test accuracy on real sets, with bands and as 8-bit RGB alone."""
    sets: list[tuple[str, RealSet, dict[str, Variant]]] = []
    if eurosat is not None:
        sets.append(("EuroSAT", find_set(eurosat.resolve(), ".tif", lambda path: path.name), EUROSAT))
    if ct is not None:
        patient = lambda path: str(pydicom.dcmread(path, specific_tags=["PatientID"]).PatientID)  # noqa: E731
        sets.append(("CT", find_set(ct.resolve(), ".dcm", patient), CT))
    lines = [["set", "read as", "probe, %", "fine-tuning, %"]]
    for name, real, variants in sets:
        for number, (variant_name, variant) in enumerate(variants.items()):
            results = []
            for seed in seeds:
                project = work / f"{name}-{number}-{seed}"
                raw = project / "data/raw"
                raw.mkdir(parents=True)
                rows = [
                    (variant.write(file, raw / f"{i:04d}"), label, split)
                    for i, (file, label, split) in enumerate(
                        zip(real.files, real.labels, draw_splits(real.groups, seed), strict=True)
                    )
                ]
                table_settings = write_table(raw, ("path", "label", "split"), rows)
                changes = {**variant.changes, "prepare": {**variant.changes.get("prepare", {}), **table_settings}}
                results.append(run_stages(project, changes, seed))
            lines.append([f"{name}, {len(real.files)} images", variant_name, *cells_of(results)])
            print("  ".join(lines[-1]), flush=True)
    print(text_table(lines))


def write_table(raw: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Write a source's table; return its settings."""
    with (raw / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return {"source": "csv:list.csv", "path": "data/raw"}


RANGES: dict[str, tuple[float, float]] = {
    "uint8": (0, 255), "uint16": (0, 10_000), "int16": (-1000, 3000), "float32": (-0.2, 1.1)
}  # fmt: skip
HEIGHT, WIDTH = 72, 80


def drawn(dtype: str, channels: int, told: int, generator: np.random.Generator, planes: int = 0) -> Pixels:
    """Draw an image (height, width, channels), or planes of one, of a depth; a class's grain differs."""
    low, high = RANGES[dtype]
    shape = (planes or 1) * channels
    fields = np.stack([texture(generator, HEIGHT, WIDTH, (4, 2)[told]) for _ in range(shape)], axis=-1)
    values = np.clip(low + (high - low) * (0.5 + fields / 6), low, high)
    values = values.reshape(HEIGHT, WIDTH, planes or 1, channels)
    values = np.moveaxis(values, 2, 0) if planes else values[:, :, 0]
    return (values if dtype == "float32" else np.rint(values)).astype(dtype)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write PNG of 8 or 16 bits, grey or RGB."""
    path.write_bytes(imagecodecs.png_encode(pixels.squeeze()))


def write_tiff(path: Path, pixels: Pixels) -> None:
    """Write TIFF; of several planes a page each."""
    if pixels.ndim == 4:
        tifffile.imwrite(path, pixels.squeeze(-1), photometric="minisblack")
    else:
        contiguous: dict[str, Any] = {"planarconfig": "contig"} if pixels.shape[2] > 1 else {}
        tifffile.imwrite(path, pixels.squeeze(), photometric="minisblack", **contiguous)


def write_dicom(path: Path, pixels: Pixels, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a DICOM slice, signed or not as its pixels are, with CT's slope and intercept where it is not."""
    values = pixels.squeeze()
    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = SecondaryCaptureImageStorage
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = pydicom.uid.generate_uid()
    about.Rows, about.Columns = values.shape
    about.SamplesPerPixel, about.PhotometricInterpretation = 1, "MONOCHROME2"
    about.BitsAllocated = about.BitsStored = 16
    about.HighBit, about.PixelRepresentation = 15, int(values.dtype.kind == "i")
    about.RescaleSlope, about.RescaleIntercept = 1, 0 if values.dtype.kind == "i" else -1024
    about.PixelData = values.tobytes()
    if syntax == RLELossless:
        about.compress(RLELossless)
    elif syntax == JPEG2000Lossless:
        about.PixelData = encapsulate(
            [bytes(imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", reversible=True))]
        )
        about["PixelData"].is_undefined_length = True
        about.file_meta.TransferSyntaxUID = JPEG2000Lossless
    about.save_as(path, enforce_file_format=True)


class Kind(NamedTuple):
    """Files of one kind: their suffix, how one is written and drawn, and what params they need."""

    suffix: str
    write: Callable[[Path, Pixels], None]
    draw: Callable[[int, np.random.Generator], Pixels]
    prepare: Mapping[str, Any] = {}


def _kinds() -> Iterator[tuple[str, Kind]]:
    for dtype in ("uint8", "uint16"):
        for channels, colours in ((1, "grey"), (3, "RGB")):
            bits = 8 * np.dtype(dtype).itemsize
            yield f"PNG, {bits}-bit {colours}", Kind(".png", write_png, partial(drawn, dtype, channels))
    for dtype in RANGES:
        for channels in (1, 4, 13):
            bands = "1 band" if channels == 1 else f"{channels} bands"
            yield f"TIFF, {bands} of {dtype}", Kind(".tif", write_tiff, partial(drawn, dtype, channels))
    for planes in ("max", "mean", "channels"):
        draw = partial(drawn, "uint16", 1, planes=5)
        yield f"TIFF of 5 pages of uint16, planes: {planes}", Kind(".tif", write_tiff, draw, {"planes": planes})
    yield "DICOM, unsigned", Kind(".dcm", write_dicom, partial(drawn, "uint16", 1))
    yield "DICOM, signed", Kind(".dcm", write_dicom, partial(drawn, "int16", 1))
    for name, syntax in (("JPEG 2000", JPEG2000Lossless), ("RLE", RLELossless)):
        yield f"DICOM, {name}", Kind(".dcm", partial(write_dicom, syntax=syntax), partial(drawn, "uint16", 1))
    yield ".npy, 6 bands of float32", Kind(".npy", np.save, partial(drawn, "float32", 6))
    two = {"band_files": ["first", "second"], "channels": 2}
    yield "two TIFFs an image, uint16", Kind(".tif", write_tiff, partial(drawn, "uint16", 2), two)


def write_kind(raw: Path, kind: Kind, count: int) -> dict[str, Any]:
    """Write ``count`` files for validation and test, and a third as many for training; return prepare's settings."""
    generator, rows = np.random.default_rng(0), []
    columns = kind.prepare.get("band_files", ["path"])
    for i in range(count + count // 3):
        names = [f"{i:04d}-{column}{kind.suffix}" for column in columns]
        pixels = kind.draw(i % 2, generator)
        for part, name in zip(np.split(pixels, len(names), axis=-1), names, strict=True):
            kind.write(raw / name, part)
        split = "train" if i >= count else ("validation", "test")[i // 2 % 2]
        rows.append((*names, CLASSES[i % 2], split))
    return {**kind.prepare, **write_table(raw, (*columns, "label", "split"), rows), "train_scale": None}


def measure_gate(work: Path, count: int, only: Sequence[str]) -> None:
    """Print, for each kind of file, the largest differences of pixels and of logits."""
    lines = [["files", "stored as", "input, largest difference", "logits, largest difference", "their deviation"]]
    for number, (name, kind) in enumerate(_kinds()):
        if only and not any(part in name for part in only):
            continue
        project = work / f"kind-{number}"
        raw = project / "data/raw"
        raw.mkdir(parents=True)
        changes: dict[str, Any] = {"prepare": write_kind(raw, kind, count)}
        changes["export"] = {"formats": ["onnx"], "pictures": 16}
        params = parse_params({**PLAIN, **changes}, partial=True)
        with contextlib.chdir(project), (project / "log").open("a") as log, contextlib.redirect_stdout(log):
            prepare.run(params.declared(prepare.PARAMS))
            export_untrained(params)
            lines.append([name, *compare()])
        print("  ".join(lines[-1]), flush=True)
    print(text_table(lines))


def export_untrained(params: Params) -> None:
    """Write the bundle of the pretrained backbone with a random head."""
    prepared = PreparedDataset.open()
    torch.manual_seed(0)
    model = backbone_for(params.backbone, prepared.target.outputs, prepared.input["input_size"][0]).eval()
    torch.nn.init.normal_(get_head(model).weight, std=0.1)
    info, source = ModelCardInfo("untrained", {}), open_source(params.prepare, params.run)
    write_bundle(paths.EXPORT, model, prepared, source, params, target=prepared.target, info=info)


@torch.inference_mode()
def compare() -> list[str]:
    """Compare both ways on all validation and test files of the working directory's project; return a line's cells."""
    prepared, predictor = PreparedDataset.open(), Predictor(paths.EXPORT)
    rows = np.sort(np.concatenate([prepared.rows("validation"), prepared.rows("test")]))
    model = timm.create_model(f"local-dir:{paths.EXPORT}", pretrained=True).eval()
    session = onnxruntime.InferenceSession(str(paths.EXPORT / "model.onnx"), providers=["CPUExecutionProvider"])
    normalize, sources = Normalize(prepared.input), sources_and_splits(rows.tolist())
    inputs, outputs, logits = [0.0], [0.0], []
    for batch in np.array_split(rows, -(-len(rows) // 16)):
        trained = normalize(evaluation_pixels(prepared, batch))
        answered = np.stack([_predicted(predictor, sources[row][0]) for row in batch.tolist()])
        inputs.append(float(np.abs(trained.numpy() - answered).max()))
        logits.append(session.run(["logits"], {"pixels": answered})[0])
        outputs.append(float(np.abs(model(trained).numpy() - logits[-1]).max()))
    layout = prepared.bands.layout if prepared.bands else "8-bit RGB"
    return [str(layout), f"{max(inputs):.1e}", f"{max(outputs):.1e}", f"{np.std(np.concatenate(logits)):.2f}"]


def _predicted(predictor: Predictor, source: str) -> NDArray[np.float32]:
    """Return pixels as ``predict`` makes them of an image's file, or its files."""
    files = [Path("data/raw", name) for name in split_names(source)]
    if len(files) == 1:
        return predictor.prepare(files[0])
    assert predictor.preprocessing.bands is not None
    content = [file.read_bytes() for file in files]
    return predictor.preprocessing(read_array(content, predictor.preprocessing.bands.layout).pixels)


class Case(NamedTuple):
    """TIFFs of uint16, square, and the side of the model's input."""

    bands: int
    side: int
    size: int
    images: int


CASES = {"13 x 64 x 64": Case(13, 64, 64, 2048), "1 x 512 x 512": Case(1, 512, 224, 512)}
PEERS = {"torchgeo": "torchgeo", "tifffile and torchvision": "tiff"}


def measure_rates(work: Path, rounds: int, peers: str, only: Sequence[str]) -> None:
    """Print images/s of prepare and of the training batches, for each case."""
    for name, case in CASES.items():
        if only and not any(part in name for part in only):
            continue
        images = work / name.replace(" ", "") / "images"
        write_case(images, case)
        middle = [5000.0] * case.bands
        task = Task(
            *(str(images), str(images.parent / "work"), case.images, "resnet18", case.size, "bilinear", middle),
            std=[1600.0] * case.bands,
            crop_pct=0.95,
            train_side=case.side,
            batch_size=64,
            epochs=3,
            precision="32-true",
            device="cpu",
            tuned=True,
        )
        stored = [Contestant("headstart prepare, 2 workers", "headstart", "prepare", {"workers": 2})]
        stored += [
            Contestant(f"{peer} pass, 2 workers", module, "prepare", {"workers": 2}) for peer, module in PEERS.items()
        ]
        loading = [
            Contestant(f"{peer} loader, {workers} workers", module, "load", {"workers": workers}, ALLOCATOR)
            for workers in (0, 2)
            for peer, module in {"headstart": "headstart", **PEERS}.items()
        ]
        rates = run_rounds([*stored, *loading], task, rounds=rounds, peers=peers)
        references = {f"× torchgeo, {workers}": f"torchgeo loader, {workers} workers" for workers in (0, 2)}
        print(f"{name} of uint16, input {case.size} px", table(rates, references), sep="\n", end="\n\n", flush=True)


def write_case(folder: Path, case: Case) -> None:
    """Write train/, val/ and test/ with two classes each."""
    generator = np.random.default_rng(0)
    base = np.stack([texture(generator, 2 * case.side, 2 * case.side, 2, 8) for _ in range(case.bands)], axis=-1)
    levels = np.clip(5000 + 1600 * base, 0, 10_000).astype(np.uint16)
    for split, count in (("train", case.images), ("val", 64), ("test", 64)):
        for i in range(count):
            path = folder / split / CLASSES[i % 2] / f"{i:05d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            top, left = generator.integers(0, case.side, 2).tolist()
            noise = generator.integers(0, 100, (case.side, case.side, case.bands), np.uint16)  # no two are equal
            write_tiff(path, levels[top : top + case.side, left : left + case.side] + noise)


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("planted", "real", "gate", "rates"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eurosat", type=Path)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of kinds or cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=sys.executable, help="an interpreter")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        match args.part:
            case "planted":
                measure_planted(work, args.seeds)
            case "real":
                measure_real(work, args.seeds, args.eurosat, args.ct)
            case "gate":
                measure_gate(work, args.count, args.only)
            case "rates":
                measure_rates(work, args.rounds, args.peers, args.only)


if __name__ == "__main__":
    main()
