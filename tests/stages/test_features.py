"""The features stage: equal to the model's own, cached by content, resumed after a kill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.core.paths import FEATURES
from headstart.data import loader
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.transforms import evaluation_transform
from headstart.features.cache import FeatureCache, ImageKeys, read_changed_features, read_features
from headstart.models.backbone import BUNDLED, create_backbone, features_of, get_head
from headstart.models.head import read_pretrained_head
from headstart.stages import features
from helpers.images import params, write_prepared

SMALL = {"backbone.name": "test_resnet", "backbone.pretrained": False, "features.batch_size": 4, "run.cache": "cache"}


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("reports/features.json").read_text())
    return content


def stored() -> bytes:
    return (FEATURES / "features.npy").read_bytes()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    monkeypatch.chdir(tmp_path)
    return write_prepared()


def run(**changes: Any) -> None:
    features.run(params({**SMALL, **changes}).declared(features.PARAMS))


def test_logits_from_cached_features_are_the_models_own(prepared: PreparedDataset) -> None:
    run()
    model = create_backbone("test_resnet", pretrained=False, image_size=None, args={}, num_classes=4).eval()
    nn.init.normal_(get_head(model).weight)
    rows = np.arange(len(prepared.ids))
    with torch.inference_mode():
        expected = model(Normalize(prepared.input)(evaluation_pixels(prepared, rows)))
        logits = get_head(model)(torch.from_numpy(read_features(rows)))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(prepared: PreparedDataset) -> None:
    run()
    first = stored()
    assert report()["computed"] == len(prepared.ids)
    run()
    assert report()["computed"] == 0
    assert report()["reused"] == len(prepared.ids)
    assert stored() == first


@pytest.mark.usefixtures("prepared")
def test_other_weights_have_other_rows_and_going_back_computes_nothing() -> None:
    run()
    first = stored()
    run(**{"backbone.seed": 1})
    assert report()["reused"] == 0
    assert stored() != first
    run()
    assert report()["computed"] == 0
    assert stored() == first


def test_a_killed_run_is_resumed(prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_after_files(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not FEATURES.exists()
    run()
    assert report()["reused"] == 8
    interrupted = stored()
    run(**{"run.cache": "another cache"})
    assert report()["reused"] == 0
    assert stored() == interrupted
    assert len(prepared.ids) == report()["pictures"]


def kill_after_files(patch: pytest.MonkeyPatch, files: int | None = None) -> list[int]:
    """End this process once it has written so many files of the cache, a batch each; list how many rows they have."""
    real, written = FeatureCache.add, list[int]()

    def counted(self: FeatureCache, keys: ImageKeys, rows: NDArray[Any]) -> None:
        if len(written) == files:
            raise KeyboardInterrupt
        real(self, keys, rows)
        written.append(len(rows))

    patch.setattr(FeatureCache, "add", counted)
    return written


def test_half_precision_rows_are_near(prepared: PreparedDataset) -> None:
    run()
    rows = np.arange(len(prepared.ids))
    full = read_features(rows)
    run(**{"features.dtype": "float16"})
    assert np.load(FEATURES / "features.npy").dtype == np.float16
    np.testing.assert_allclose(read_features(rows), full, rtol=1e-3, atol=1e-3)


def test_the_pretrained_head_is_kept_and_fits_the_features(prepared: PreparedDataset) -> None:
    run(**{"backbone.name": BUNDLED, "backbone.pretrained": True})
    model = create_backbone(BUNDLED, pretrained=True, image_size=None, args={}).eval()
    own = read_pretrained_head()
    assert own is not None
    rows = np.arange(len(prepared.ids))
    with torch.inference_mode():
        expected = model(Normalize(prepared.input)(evaluation_pixels(prepared, rows))).numpy()
    np.testing.assert_allclose(read_features(rows) @ own.weight.T + own.bias, expected, rtol=1e-4, atol=1e-4)
    assert own.names[:1] == ["n01443537"]
    assert own.descriptions[:1] == ["goldfish, Carassius auratus"]


@pytest.mark.usefixtures("prepared")
def test_random_weights_have_no_pretrained_head_and_remove_the_last_ones() -> None:
    run(**{"backbone.name": BUNDLED, "backbone.pretrained": True})
    run()
    assert read_pretrained_head() is None
    assert sorted(path.name for path in FEATURES.iterdir()) == ["features.json", "features.npy"]


@pytest.mark.usefixtures("prepared")
def test_timms_crop_is_not_built_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counted(config: dict[str, Any]) -> Any:
        built.append(config)
        return evaluation_transform(config)

    monkeypatch.setattr(loader, "evaluation_transform", counted)
    run(**{"features.batch_size": 31})
    assert len(built) == 1  # all 31 images are computed in one batch, and named without it


def test_features_after_a_change_are_those_of_the_changed_images(prepared: PreparedDataset) -> None:
    run(**{"backbone.name": BUNDLED, "backbone.pretrained": True})
    rows, changed = read_changed_features()
    assert rows.tolist() == prepared.rows("validation").tolist()
    assert set(changed) == {"hflip", "vflip", "quarter_turn"}
    model = create_backbone(BUNDLED, pretrained=True, image_size=None, args={}, num_classes=4).eval()
    pixels = Normalize(prepared.input)(evaluation_pixels(prepared, rows))
    for name, axes in {"hflip": (3,), "vflip": (2,)}.items():
        with torch.inference_mode():
            expected = features_of(model, pixels.flip(axes)).numpy()
        np.testing.assert_allclose(changed[name], expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        turned = features_of(model, pixels.flip(3).transpose(2, 3)).numpy()
    np.testing.assert_allclose(changed["quarter_turn"], turned, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("prepared")
def test_features_after_a_change_are_cached_and_the_same_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = {"backbone.name": BUNDLED, "backbone.pretrained": True}
    run(**pretrained)
    kept = (FEATURES / "changed.safetensors").read_bytes()
    added = kill_after_files(monkeypatch)
    run(**pretrained)
    assert added == []
    assert (FEATURES / "changed.safetensors").read_bytes() == kept
    with monkeypatch.context() as patch:
        kill_after_files(patch, 10)  # eight of the images as they are
        with pytest.raises(KeyboardInterrupt):
            run(**pretrained, **{"run.cache": "another cache"})
    run(**pretrained, **{"run.cache": "another cache"})
    assert added[10:] == [2]
    assert (FEATURES / "changed.safetensors").read_bytes() == kept


@pytest.mark.usefixtures("prepared")
def test_random_weights_are_not_asked_about_changes() -> None:
    run()
    rows, changed = read_changed_features()
    assert len(rows) == 0
    assert changed == {}
