"""A prediction is the one that torch and timm compute for the same image."""

import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from timm.data.transforms_factory import create_transform

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.images.decode import BadImageError
from headstart.images.preprocess import Preprocessing
from headstart.inference import bundle
from headstart.inference.predictor import Predictor
from headstart.inference.scores import distances
from headstart.models.backbone import WithFeatures
from helpers.bundles import CALIBRATION, CLASSES, INPUT, copy_bundle, small_model
from helpers.hostile_bundles import GOOD, set_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(tmp_path_factory.mktemp("bundle") / "export")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, threads=2)


def noise_image(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """Noise around a colour, so that images differ."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, (size[1], size[0], 3)) + generator.integers(0, 136, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        noise_image(i, (30 + i % 7, 40)).save(path)
    return paths


def expected(images: list[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    transform = create_transform(**INPUT, is_training=False)
    with torch.inference_mode():
        logits, features = WithFeatures(small_model())(torch.stack([transform(image) for image in images]))
    return logits.numpy(), features.numpy()


def test_an_image_gets_what_timm_and_torch_give(folder: Path, predictor: Predictor) -> None:
    logits, features = expected([noise_image(i) for i in range(8)])
    assert len(set(logits.argmax(1))) > 1
    far = distances(features, np.load(folder / bundle.REFERENCE))
    for i, probabilities in enumerate(softmax(logits.astype(np.float64), axis=1)):
        found = predictor(noise_image(i))
        order = np.argsort(-probabilities)
        assert found.label == CLASSES[order[0]]
        assert found.probability == pytest.approx(probabilities[order[0]], abs=1e-5)
        assert [label for label, _ in found.top] == [CLASSES[each] for each in order]
        assert [p for _, p in found.top] == pytest.approx(probabilities[order], abs=1e-5)
        assert found.prediction_set == [CLASSES[each] for each in order if 1 - probabilities[each] <= 0.7]
        assert found.ood_distance == pytest.approx(far[i], abs=1e-5)
        assert found.error is None


def test_a_path_a_files_content_and_an_image_are_the_same_image(predictor: Predictor, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    by_path, by_text = predictor(path), predictor(str(path))
    assert by_path == by_text
    assert by_path.image == str(path)
    assert predictor(path.read_bytes()).top == predictor(Image.open(path)).top == by_path.top


def test_an_image_is_turned_as_its_file_would_be(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_image(1).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert predictor(image).top == predictor(tmp_path / "turned.png").top != predictor(noise_image(1)).top


def test_many_come_in_order_and_a_bad_one_is_a_row(predictor: Predictor, tmp_path: Path) -> None:
    paths = saved(tmp_path, 60)
    paths[7].write_bytes(b"no image")
    paths[40].unlink()
    found = list(predictor.predict_many(paths))
    assert [each.image for each in found] == [str(path) for path in paths]
    assert {i: each.error for i, each in enumerate(found) if each.error} == {
        7: "text, not an image that Pillow can read: remove it, or fetch the image again",
        40: "there is no such file",
    }
    for i in (0, 1, 8, 39, 59):
        alone = predictor(paths[i])
        assert [label for label, _ in found[i].top] == [label for label, _ in alone.top]
        assert found[i].probability == pytest.approx(alone.probability, abs=1e-5)


def test_many_read_no_further_ahead_than_a_few_batches(predictor: Predictor, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    answers = predictor.predict_many(endless())
    for _ in range(20):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert taken < 200


def test_none_at_all(predictor: Predictor) -> None:
    assert list(predictor.predict_many([])) == []


def test_a_bad_image_alone_is_an_exception(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no such file"):
        predictor(tmp_path / "none.jpg")
    with pytest.raises(BadImageError, match="empty"):
        predictor(b"")


def test_an_image_that_memory_has_no_room_for_is_a_bad_image(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Preprocessing, "__call__", no_room)
    with pytest.raises(BadImageError, match="there is not enough memory to decode it"):
        predictor(noise_image(0))
    assert [each.error for each in predictor.predict_many(saved(tmp_path, 1))] == [
        "there is not enough memory to decode it"
    ]


def test_many_threads_share_a_predictor(predictor: Predictor) -> None:
    contents = []
    for i in range(12):
        file = io.BytesIO()
        noise_image(i).save(file, "PNG")
        contents.append(file.getvalue())
    alone = [predictor(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(predictor, contents * 5)) == alone * 5


def test_calibration_changes_probabilities_and_nothing_else(folder: Path, predictor: Predictor) -> None:
    logits, _ = expected([noise_image(3)])
    calibrated, plain = Predictor(folder, calibrated=True)(noise_image(3)), predictor(noise_image(3))
    by_temperature = softmax(logits.astype(np.float64) / CALIBRATION["temperature"], axis=1)
    assert calibrated.probability == pytest.approx(by_temperature.max(), abs=1e-5)
    assert (calibrated.label, calibrated.prediction_set) == (plain.label, plain.prediction_set)
    assert calibrated.ood_distance == plain.ood_distance


def test_the_sets_that_are_asked_for(folder: Path) -> None:
    whole = Predictor(folder, conformal=0.95)(noise_image(0))
    assert whole.prediction_set is not None
    assert sorted(whole.prediction_set) == CLASSES  # its threshold is null
    probabilities = np.array([p for _, p in whole.top])
    likelier = np.cumsum(probabilities) - probabilities
    by_aps = Predictor(folder, conformal=0.9, conformal_method="APS")(noise_image(0))
    assert by_aps.prediction_set == [
        label for (label, _), before in zip(whole.top, likelier, strict=True) if before <= 0.6
    ]
    with pytest.raises(UserError, match=r"sets or intervals of 0\.8: it has 0\.9 by LAC, 0\.95 by LAC, 0\.9 by APS"):
        Predictor(folder, conformal=0.8)


def test_a_bundle_that_knows_nothing_of_its_answers(tmp_path: Path) -> None:
    folder = changed(tmp_path, temperature=None, conformal=[], out_of_distribution=None)
    found = Predictor(folder)(noise_image(0))
    assert found.label
    assert (found.prediction_set, found.ood_distance, found.ood_level) == (None, None, None)
    with pytest.raises(UserError, match="has no temperature"):
        Predictor(folder, calibrated=True)
    with pytest.raises(UserError, match="it has none"):
        Predictor(folder, conformal=0.9)


@pytest.mark.parametrize(("limits", "level"), [((0, 0), 0.99), ((0, 2), 0.95), ((2, 2), None)])
def test_the_ood_level_is_the_largest_threshold_that_is_exceeded(
    tmp_path: Path, limits: tuple[float, float], level: float | None
) -> None:
    ood = {"thresholds": dict(zip(("0.95", "0.99"), limits, strict=True))}
    assert Predictor(changed(tmp_path, out_of_distribution=ood))(noise_image(0)).ood_level == level


def test_the_former_names_are_still_read(predictor: Predictor, tmp_path: Path) -> None:
    (found,) = predictor.many(saved(tmp_path, 1))
    assert found.ood_distance is not None
    former = (found.picture, found.set, found.distance, found.unusual)
    assert former == (found.image, found.prediction_set, found.ood_distance, found.ood_level)


def test_torch_gives_the_same(folder: Path, predictor: Predictor) -> None:
    ours, by_torch = predictor(noise_image(5)), Predictor(folder, device="torch")(noise_image(5))
    assert by_torch.label == ours.label
    assert by_torch.probability == pytest.approx(ours.probability, abs=1e-5)
    assert by_torch.ood_distance == pytest.approx(ours.ood_distance, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "hf-hub:someone/something", "architecture is no name of timm's"),
        ("architecture", "no_such_model", "timm can't build"),
        ("model_args", {"checkpoint_path": "/etc/passwd"}, "model_args.checkpoint_path"),
        ("model_args", {"layers": [10**9]}, "model_args.layers"),
        ("model_args", {"in_chans": 4}, "timm can't build this model with model.safetensors"),
    ],
)
def test_what_torch_would_build_is_checked(tmp_path: Path, key: str, value: object, message: str) -> None:
    folder = copy_bundle(tmp_path / "export")
    write_json(folder / paths.MODEL_CONFIG, read_json(folder / paths.MODEL_CONFIG) | {key: value})
    bundle.write_manifest(folder)
    with pytest.raises(UserError, match=message):
        Predictor(folder, device="torch")


def test_outputs_that_are_no_numbers_are_an_error_of_the_image(predictor: Predictor) -> None:
    inputs = np.stack([predictor.prepare(noise_image(0)), np.full((3, 32, 32), math.nan, np.float32)])
    good, bad = predictor.predict(inputs)
    assert (good.error, bad.error) == (None, "the model's outputs are no finite numbers")


def test_devices_and_files_that_there_are_not(folder: Path) -> None:
    with pytest.raises(UserError, match="must be cpu, cuda or torch"):
        Predictor(folder, device="tpu")
    with pytest.raises(UserError, match="threads must be at least 1, not 0"):
        Predictor(folder, threads=0)
    with pytest.raises(UserError, match=r"lists no model\.int8\.onnx"):
        Predictor(folder, model=bundle.ONNX_INT8)


def changed(tmp_path: Path, **entries: object) -> Path:
    folder = copy_bundle(tmp_path / "export")
    config = read_json(folder / paths.MODEL_CONFIG)
    write_json(folder / paths.MODEL_CONFIG, config | {"headstart": config["headstart"] | entries})
    bundle.write_manifest(folder)
    return folder


def test_several_numbers_have_their_units_and_intervals(tmp_path: Path) -> None:
    """As if the outputs were four numbers; of the third validation was too small for an interval."""
    folder = copy_bundle(tmp_path / "export")
    set_target(folder, GOOD["number"])
    bundle.write_manifest(folder)
    found, (logits,) = Predictor(folder)(noise_image(2)), expected([noise_image(2)])[0]
    spec, (level,) = GOOD["number"]["target"]["spec"], GOOD["number"]["conformal"]
    assert found.numbers is not None
    for i, number in enumerate(found.numbers):
        assert (number.name, number.unit) == (CLASSES[i], spec["units"][i])
        assert number.value == pytest.approx(logits[i] * spec["scale"][i] + spec["mean"][i], abs=1e-3)
        wider = level["threshold"][i]
        assert number.interval is not None
        assert number.interval == (
            [None, None] if wider is None else pytest.approx([number.value - wider, number.value + wider])
        )
    assert (found.value, found.unit, found.interval) == (found.numbers[0].value, "kg", found.numbers[0].interval)
    assert (found.label, found.probability, found.top, found.prediction_set, found.labels) == (
        None,
        None,
        [],
        None,
        None,
    )
