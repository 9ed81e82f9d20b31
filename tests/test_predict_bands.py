"""Predict and serve for a model of images with bands: files of every kind, in memory, several files for one image."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from headstart.core.io import read_json, write_json
from headstart.core.paths import MODEL_CONFIG
from headstart.inference.bundle import write_manifest
from headstart.inference.server import Limits, application
from headstart.predict import BadImageError, Predictor
from helpers.bands import bands_of, random_pixels
from helpers.bundles import BANDS, copy_bundle
from helpers.command import headstart

PATTERNS = ["*_B02.npy", "*_B03.npy", "*_B04.npy", "*_B08.npy"]
OTHERS = "where the others have 4 of uint16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(tmp_path_factory.mktemp("bundle") / "export", bands=True)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, threads=2)


def pixels_of(seed: int) -> NDArray[Any]:
    return random_pixels(36, 44, 4, "uint16", seed)


def npy(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def tiff(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


def dicom(pixels: NDArray[Any]) -> bytes:
    """Write frames (frames, height, width) of uint16."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    content = pydicom.Dataset()
    content.file_meta = meta
    content.SOPClassUID, content.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    content.NumberOfFrames, content.Rows, content.Columns = pixels.shape
    content.SamplesPerPixel, content.PhotometricInterpretation, content.PixelRepresentation = 1, "MONOCHROME2", 0
    content.BitsAllocated = content.BitsStored = 16
    content.HighBit = 15
    content.PixelData = pixels.tobytes()
    file = io.BytesIO()
    content.save_as(file, enforce_file_format=True)
    return file.getvalue()


def save_bands(folder: Path, name: str, pixels: NDArray[Any]) -> list[Path]:
    """Save each band as a file of its own."""
    paths = [folder / pattern.replace("*", name) for pattern in PATTERNS]
    for band, path in enumerate(paths):
        path.write_bytes(npy(pixels[..., band]))
    return paths


def with_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return a bundle with bands, of which ``headstart`` in config.json was changed."""
    config = read_json(copy_bundle(folder, bands=True) / MODEL_CONFIG)
    change(config["headstart"])
    write_json(folder / MODEL_CONFIG, config)
    write_manifest(folder)
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_way_to_give_an_image_is_the_same_image(predictor: Predictor, tmp_path: Path) -> None:
    pixels = pixels_of(1)
    (tmp_path / "image").write_bytes(tiff(pixels))
    expected = predictor(tmp_path / "image")
    assert expected.image == str(tmp_path / "image")
    ways: list[Any] = [tiff(pixels), npy(pixels), pixels, pixels.astype(np.float64), np.moveaxis(pixels, 2, 0)]
    ways += [save_bands(tmp_path, "a", pixels), [npy(pixels[..., :3]), npy(pixels[..., 3])]]
    for way in ways:
        assert predictor(way).top == expected.top
    assert predictor(pixels_of(2)).top != expected.top
    assert predictor(save_bands(tmp_path, "a", pixels)).image == str(tmp_path / "a_B02.npy")
    assert [each.label for each in predictor.predict_many(ways)] == [expected.label] * len(ways)


def test_the_input_is_what_numpy_computes_of_the_pixels(predictor: Predictor) -> None:
    pixels = random_pixels(36, 36, 4, "uint16", 3)  # 36 = 32 / 0.875: only cropped
    low, high, mean, std = (np.array(each) for each in (BANDS.low, BANDS.high, BANDS.mean, BANDS.std))
    expected = ((np.clip(pixels, low, high) - low) / (high - low) - mean) / std
    found = predictor.prepare(pixels)
    assert found.shape == (4, 32, 32)
    assert np.abs(found - expected[2:34, 2:34].transpose(2, 0, 1)).max() < 1e-5


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16", "F"])
def test_pillows_images_are_what_their_files_are(predictor: Predictor, mode: str, tmp_path: Path) -> None:
    of_mode = {"L": ("uint8", 1), "RGB": ("uint8", 3), "P": ("uint8", 3), "I;16": ("uint16", 1), "F": ("float32", 1)}
    dtype, channels = of_mode[mode]
    pixels: NDArray[Any] = random_pixels(36, 44, channels, dtype, 4)  # type: ignore[arg-type]
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    image = image.quantize(16) if mode == "P" else image
    assert image.mode == mode
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "image.tif", exif=exif)
    like = copy_predictor(predictor, dtype, channels)
    # Not by its path: from that Pillow (13.0) maps a turned TIFF into memory with width and height exchanged.
    with Image.open(io.BytesIO((tmp_path / "image.tif").read_bytes())) as opened:
        found = like.prepare(opened)
    assert np.array_equal(found, like.prepare(tmp_path / "image.tif"))
    assert not np.array_equal(found, like.prepare(image))


def copy_predictor(predictor: Predictor, dtype: Any, channels: int) -> Predictor:
    """Return a predictor that prepares images of another layout; its model can't be run on them."""
    other = object.__new__(Predictor)
    other.__dict__ |= predictor.__dict__
    other.preprocessing = replace(predictor.preprocessing, bands=bands_of(dtype, channels))
    return other


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((36, 44, 3), np.uint8), f"has 3 bands of uint8 {OTHERS}"),
        (np.zeros((36, 44), np.uint16), f"has 1 band of uint16 {OTHERS}"),
        (np.full((36, 44, 4), -1, np.int16), "has values from -1 to -1 where the others have uint16"),
        (np.full((36, 44, 4), None), "an array of Python objects: give numbers"),
        (np.zeros((36, 44, 4), np.complex64), "pixels of type complex64"),
        (Image.new("RGB", (44, 36)), f"has 3 bands of uint8 {OTHERS}"),
        (Image.new("HSV", (44, 36)), "Pillow's image can't be read"),
        ([npy(np.zeros((36, 44), np.uint16))] * 3, f"has 3 bands of uint16 {OTHERS}"),
        ([npy(np.zeros((36, 40 + i), np.uint16)) for i in range(4)], "its bands differ in size"),
    ],
)
def test_an_image_of_another_layout_is_refused_by_what_differs(predictor: Predictor, image: Any, said: str) -> None:
    with pytest.raises(BadImageError) as refused:
        predictor(image)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_of_a_model_of_rgb_arrays_are_images_and_lists_are_not(tmp_path: Path) -> None:
    predictor = Predictor(copy_bundle(tmp_path / "export"), threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (36, 44, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert predictor(pixels).top == predictor(tmp_path / "image.png").top
    assert predictor(pixels[..., 0]).top == predictor(np.repeat(pixels[..., :1], 3, axis=2)).top
    refused_images: dict[str, Any] = {
        "an array of uint16 of shape (36, 44, 3)": pixels.astype(np.uint16),
        "an array of uint8 of shape (36, 44, 4)": np.zeros((36, 44, 4), np.uint8),
        "several files for one image": [tmp_path / "image.png"],
    }
    for said, image in refused_images.items():
        with pytest.raises(BadImageError) as refused:
            predictor(image)
        assert str(refused.value).startswith(said)


def test_the_command_reads_folders_of_all_kinds_and_says_what_differs(tmp_path: Path) -> None:
    def stacks(about: dict[str, Any]) -> None:
        about["input"]["bands"]["layout"]["planes"] = "channels"

    export, images = with_config(tmp_path / "export", stacks), tmp_path / "images"
    images.mkdir()
    pixels = pixels_of(1)
    frames = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    contents = {"a.tif": tiff(pixels), "b.npy": npy(pixels), "c": dicom(frames), "d.dcm": dicom(frames[:1])}
    for name, content in contents.items():
        (images / name).write_bytes(content)
    Image.new("RGB", (44, 36)).save(images / "e.png")
    (images / "notes.txt").write_text("no image")
    answer = headstart("predict", str(export), str(images))
    assert answer.exit_code == 0, answer.stderr
    found = {Path(row["picture"]).name: row for row in rows(answer.stdout)}
    assert {name: row["error"] for name, row in found.items()} == {
        **dict.fromkeys(["a.tif", "b.npy", "c"], ""),
        "d.dcm": f"has 1 band of uint16 {OTHERS}",
        "e.png": f"has 3 bands of uint8 {OTHERS}",
    }
    assert found["a.tif"]["label"] == found["b.npy"]["label"] == found["c"]["label"]
    assert float(found["c"]["probability"]) == pytest.approx(float(found["a.tif"]["probability"]), abs=1e-6)
    assert "2 of 5 images are bad" in answer.stderr
    assert "passed over: 1 text" in answer.stderr


def test_the_command_joins_the_files_of_an_image_by_the_patterns_it_was_trained_with(tmp_path: Path) -> None:
    export = with_config(tmp_path / "export", lambda about: about.update(band_files=PATTERNS))
    images = tmp_path / "images"
    images.mkdir()
    save_bands(images, "a", pixels_of(1))
    save_bands(images, "b", pixels_of(2))[2].unlink()
    (images / "whole.tif").write_bytes(tiff(pixels_of(1)))
    answer = headstart("predict", str(export), str(images))
    assert answer.exit_code == 0, answer.stderr
    a, b, whole = rows(answer.stdout)
    assert [each["picture"] for each in (a, b, whole)] == [str(images / name) for name in ("a", "b", "whole.tif")]
    assert (a["error"], b["error"], whole["error"]) == ("", "lacks bands: b_B04.npy", "")
    assert (a["label"], a["probability"][:6]) == (whole["label"], whole["probability"][:6])
    given = headstart("predict", str(export), *(str(images / f"a_B0{band}.npy") for band in (8, 2, 4, 3)))
    assert rows(given.stdout) == [a]


def test_torch_computes_the_same(folder: Path, predictor: Predictor) -> None:
    by_torch = Predictor(folder, device="torch", threads=1)(pixels_of(1))
    assert by_torch.probability == pytest.approx(predictor(pixels_of(1)).probability, abs=1e-5)


LIMITS = Limits(body_bytes=100_000, images=8, seconds=60, threads=1)


def post(app: FastAPI, content: bytes, kind: str) -> Any:
    return TestClient(app).post("/predict", content=content, headers={"Content-Type": kind})


def test_the_service_takes_such_files(predictor: Predictor, tmp_path: Path) -> None:
    app, pixels = application(predictor, LIMITS), pixels_of(1)
    expected = predictor(pixels)
    for kind in ("image/tiff", "application/octet-stream"):
        (answer,) = post(app, tiff(pixels), kind).json()
        assert (answer["label"], answer["error"]) == (expected.label, None)
    one_frame = post(app, dicom(np.zeros((1, 36, 44), np.uint16)), "application/dicom")
    assert (one_frame.status_code, one_frame.json()[0]["error"]) == (422, f"has 1 band of uint16 {OTHERS}")
    several = TestClient(app).post("/predict", files=[("file", ("a.npy", npy(pixels))), ("file", ("b.txt", b"no"))])
    assert [(each["picture"], each["error"] is None) for each in several.json()] == [("a.npy", True), ("b.txt", False)]
    assert post(app, bytes(100_001), "image/tiff").status_code == 413
    bomb = npy(np.zeros((2, 3), np.uint16)).replace(b"(2, 3)", b"(90000, 90000)".ljust(6))
    assert post(app, bomb, "application/octet-stream").status_code == 422
    body = app.openapi()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert list(body) == ["image/*", "application/octet-stream", "application/dicom", "multipart/form-data"]
    of_rgb = application(Predictor(copy_bundle(tmp_path / "export"), threads=1), LIMITS)
    assert post(of_rgb, b"", "application/dicom").status_code == 415
    assert "application/dicom" not in json.dumps(of_rgb.openapi())


def test_the_service_joins_the_files_of_a_form(tmp_path: Path) -> None:
    export = with_config(tmp_path / "export", lambda about: about.update(band_files=PATTERNS))
    predictor, pixels = Predictor(export, threads=1), pixels_of(1)
    files = [("file", (path.name, path.read_bytes())) for path in save_bands(tmp_path, "a", pixels)]
    client = TestClient(application(predictor, LIMITS))
    answers = client.post("/predict", files=[*files[::-1], ("file", ("b_B02.npy", npy(pixels[..., 0])))]).json()
    assert [(each["picture"], each["label"]) for each in answers] == [("a", predictor(pixels).label), ("b", None)]
    assert answers[1]["error"] == "lacks bands: b_B03.npy, b_B04.npy, b_B08.npy"
    assert len(client.post("/predict", files=files[:1]).json()) == 1
