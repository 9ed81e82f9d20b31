"""A good bundle, opened; the bad ones are in tests/helpers/hostile_bundles.py."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.inference import bundle
from headstart.inference.bundle_config import ConformalLevel
from helpers.bundles import CLASSES, INPUT, copy_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path / "export")


def test_the_manifest_lists_every_other_file(folder: Path) -> None:
    manifest = read_json(folder / bundle.BUNDLE_MANIFEST)
    assert manifest["format"] == 1
    assert sorted(manifest["files"]) == sorted(
        path.name for path in folder.iterdir() if path.name != bundle.BUNDLE_MANIFEST
    )
    content = (folder / bundle.ONNX).read_bytes()
    assert manifest["files"][bundle.ONNX] == {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_a_good_bundle(folder: Path) -> None:
    opened = bundle.open_bundle(folder)
    config = opened.config
    assert (config.architecture, config.classes, config.features) == ("test_resnet", CLASSES, 96)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in config.input.items()} == INPUT
    assert config.temperature == 1.5
    assert config.conformal[1] == ConformalLevel("LAC", 0.95, math.inf)
    assert config.ood_thresholds == {0.95: 0.05, 0.99: 0.5}
    assert opened.path(bundle.ONNX) == folder / bundle.ONNX
    reference = opened.ood_reference()
    assert reference is not None
    np.testing.assert_array_equal(reference, np.load(folder / bundle.REFERENCE))


def test_what_need_not_be_there(folder: Path) -> None:
    content = read_json(folder / paths.MODEL_CONFIG)
    content["headstart"] |= {"temperature": None, "conformal": [], "out_of_distribution": None}
    write_json(folder / paths.MODEL_CONFIG, content | {"label_descriptions": {"cat": "a small one"}})
    (folder / bundle.REFERENCE).unlink()
    bundle.write_manifest(folder)
    opened = bundle.open_bundle(folder)
    assert (opened.config.temperature, opened.config.conformal, opened.ood_reference()) == (None, [], None)
    assert opened.config.descriptions == {"cat": "a small one"}


def test_a_file_that_the_manifest_does_not_list_is_not_read(folder: Path) -> None:
    (folder / bundle.ONNX_INT8).write_bytes(b"whatever")
    with pytest.raises(UserError, match=r"manifest\.json: lists no model\.int8\.onnx"):
        bundle.open_bundle(folder).path(bundle.ONNX_INT8)


def test_a_file_is_compared_when_it_is_asked_for(folder: Path) -> None:
    opened = bundle.open_bundle(folder)
    size = (folder / bundle.ONNX).stat().st_size
    (folder / bundle.ONNX).write_bytes(bytes(size))
    with pytest.raises(UserError, match=r"model\.onnx is not what manifest\.json says"):
        opened.path(bundle.ONNX)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no folder"):
        bundle.open_bundle(tmp_path / "nowhere")
