"""Images that are no 8-bit RGB through every stage and predict: what RGB would lose tells the classes here."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import sources_and_splits
from headstart.images.bands import Bands, Depth
from headstart.predict import Predictor
from headstart.stages import evaluate, export, features, finetune, prepare, probe
from helpers.images import params

IMAGES = 90
SIDE = 40
SETTINGS: dict[str, Any] = {
    "prepare.source": "imagefolder",
    "prepare.train_scale": 1.0,
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "probe.l2": [1e-2, 1e-4],
    "probe.heads": ["knn"],
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "export.formats": ["onnx", "pt2"],
    "export.pictures": 16,
    "run.cache": "cache",
}


def band_4(told: int, generator: np.random.Generator) -> NDArray[Any]:
    """Draw an image of four bands, of which the last alone tells the class: as RGB nothing would."""
    pixels = generator.integers(0, 200, (SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = pixels[..., 3] // 4 + 100 * told
    return pixels


def low_byte(told: int, generator: np.random.Generator) -> NDArray[Any]:
    """Draw an image of 16 bits whose high byte is the same everywhere: 8 bits would be even."""
    return generator.integers(40_000 + 60 * told, 40_060 + 60 * told, (SIDE, SIDE), np.uint16)


def sign(told: int, generator: np.random.Generator) -> NDArray[Any]:
    """Draw an image of which the sign alone tells the class."""
    return generator.integers(50, 1000, (SIDE, SIDE), np.int16) * np.int16(2 * told - 1)


def floats(told: int, generator: np.random.Generator) -> NDArray[Any]:
    """Draw reflectances of six bands, small numbers of which a gap lies in one band."""
    pixels = generator.uniform(0, 0.2, (SIDE, SIDE, 6)).astype(np.float32)
    pixels[..., 5] += 0.3 * told
    pixels[0, 0, 0] = np.nan
    return pixels


KINDS: dict[str, tuple[Any, Depth, int]] = {
    "band 4": (band_4, "uint8", 4),
    "low byte": (low_byte, "uint16", 1),
    "sign": (sign, "int16", 1),
    "floats": (floats, "float32", 6),
}


def write_images(kind: str) -> None:
    draw, _, _ = KINDS[kind]
    generator = np.random.default_rng(0)
    for i in range(IMAGES):
        told = i % 2
        path = Path("data/raw", ("off", "on")[told], f"{i}.tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, draw(told, generator), photometric="minisblack", planarconfig="contig")


@pytest.mark.parametrize("kind", KINDS)
def test_what_rgb_would_lose_is_learned_and_answered(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(kind)
    _, depth, channels = KINDS[kind]
    settings = params(SETTINGS)
    for stage in (prepare, features, probe, finetune, evaluate, export):
        stage.run(settings)

    prepared = PreparedDataset.open()
    assert prepared.bands is not None
    assert (prepared.bands.layout.dtype, prepared.bands.layout.channels) == (depth, channels)
    assert prepared.input["input_size"] == [channels, 32, 32]
    assert f"of {depth}" in read_json(paths.PREPARED / "dataset.json")["found"]
    assert read_json(paths.report_of("evaluate"))["models"]["probe"]["accuracy"] > 0.95
    gate = read_json(paths.report_of("export"))["preparation"]
    assert gate["predict"] < 1e-5
    assert gate["stored"] < 1e-5

    predictor = Predictor(paths.EXPORT)
    assert Bands.of(predictor.bundle.config.input["bands"]) == prepared.bands
    answers = list(predictor.predict_many(sorted(Path("data/raw/on").glob("*.tif"))))
    assert all(answer.error is None for answer in answers)
    assert np.mean([answer.label == "on" for answer in answers]) > 0.9
    assert predictor(answers[0].image).probability == answers[0].probability

    # From the file's bytes on predict computes what training was measured on, to the last bit.
    row = int(prepared.rows("test")[0])
    stored = Normalize(prepared.input)(evaluation_pixels(prepared, np.array([row])))[0]
    source = Path("data/raw", sources_and_splits([row])[row][0])
    assert np.array_equal(predictor.prepare(source), stored.numpy())
    assert prepared.image(row).size == (33, 33)  # before the crop

    # The report, the model card and prepare's figures say what the images are, and the card's code computes the same.
    found, stretch = read_json(paths.report_of("prepare"))["found"], prepared.bands.stretch()
    assert read_json(paths.report_of("prepare"))["bands"] == prepared.bands.record()
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert f"<p>{found}; shown: {stretch}.</p>" in page
    card = (paths.EXPORT / "README.md").read_text(encoding="utf-8")
    assert f"images of {channels} {'band' if channels == 1 else 'bands'} of {depth}" in card
    assert "ImageOps" not in card
    np.save("image.npy", evaluation_pixels(prepared, np.array([row]))[0].numpy())
    said: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, said)  # noqa: S102  (the card's own examples)
    assert np.abs(said["pixels"].numpy() - stored.numpy()).max() < 1e-4
    (expected,) = predictor.predict(stored.numpy()[None])
    assert said["model"].pretrained_cfg["label_names"][said["logits"][0].argmax()] == expected.label


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("band 4", {"finetune.augment.policy": "randaugment"}, r"finetune\.augment\.policy"),
    ("band 4", {"backbone.rgb": [5, 2, 1]}, r"backbone\.rgb"),
    ("band 4", {"backbone.rgb": [3, 2, 1]}, r"backbone\.rgb.*random weights"),
    ("low byte", {"prepare.store": "jpeg"}, r"prepare\.store: jpeg keeps 8-bit RGB alone"),
    ("low byte", {"prepare.range": [[0, 1], [0, 2]]}, r"prepare\.range: 2 pairs"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_what_the_images_do_not_have_is_refused_by_prepare(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(kind)
    with pytest.raises(UserError, match=message):
        prepare.run(params(SETTINGS | changes))
    assert not [*Path("data").rglob("packed-*.json")]  # before the long work


def test_what_rgb_knows_itself_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        path = Path("data/raw", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 2 * i, 3 * i)).save(path)
    bundled: dict[str, Any] = {"backbone.name": "bundled", "backbone.pretrained": True}
    with pytest.raises(UserError, match=r"backbone\.rgb: the images are 8-bit RGB"):
        prepare.run(params(SETTINGS | bundled | {"backbone.rgb": [3, 2, 1]}))
    with pytest.raises(UserError, match=r"finetune\.augment\.noise"):
        prepare.run(params(SETTINGS | {"finetune.augment.noise": 0.1}))


def test_files_that_may_be_bands_of_one_image_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for i in range(40):
        for band in ("B02", "B03"):
            path = Path("data/raw", "ab"[i % 2], f"scene{i}_{band}.tif")
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, low_byte(i % 2, generator))
    prepare.run(params(SETTINGS))
    assert "end in _B02.tif, _B03.tif. Bands of one image belong into prepare.band_files" in caplog.text
    caplog.clear()
    prepare.run(params(SETTINGS | {"prepare.band_files": ["*_B02.tif", "*_B03.tif"]}))
    assert "names end in" not in caplog.text
    assert PreparedDataset.open().input["input_size"][0] == 2
