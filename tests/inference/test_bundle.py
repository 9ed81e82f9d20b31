"""A good bundle, opened; the bad ones are in tests/helpers/hostile_bundles.py."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, write_json
from headstart.inference import bundle
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from helpers.bundles import CLASSES, INPUT, copy_bundle
from helpers.hostile_bundles import GOOD, make_hostile, set_target


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
    assert config.fitted == {"temperature": 1.5}
    assert config.conformal[1] == {"method": "LAC", "level": 0.95, "threshold": None}
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
    assert (opened.config.fitted, opened.config.conformal, opened.ood_reference()) == (None, [], None)
    assert opened.config.descriptions == {"cat": "a small one"}


def test_good_bundles_of_labels_and_numbers(folder: Path) -> None:
    set_target(folder, GOOD["labels"])
    bundle.write_manifest(folder)
    config = bundle.open_bundle(folder).config
    assert config.target == Labels(CLASSES)
    assert config.fitted == {name: GOOD["labels"][name] for name in ("temperatures", "thresholds")}
    assert config.conformal == GOOD["labels"]["conformal"]
    set_target(folder, GOOD["number"] | {"temperatures": None})
    bundle.write_manifest(folder)
    config = bundle.open_bundle(folder).config
    assert config.target == Numbers(CLASSES, **GOOD["number"]["target"]["spec"])
    assert (config.fitted, config.conformal) == ({}, GOOD["number"]["conformal"])


def test_a_file_that_the_manifest_does_not_list_is_not_read(folder: Path) -> None:
    (folder / bundle.ONNX_INT8).write_bytes(b"whatever")
    with pytest.raises(UserError, match=r"manifest\.json: lists no model\.int8\.onnx"):
        bundle.open_bundle(folder).path(bundle.ONNX_INT8)


def test_without_onnx_the_way_out_is_named(folder: Path) -> None:
    (folder / bundle.ONNX).unlink()
    bundle.write_manifest(folder)
    with pytest.raises(UserError, match=r"lists no model\.onnx; it has .*: --device torch runs model\.safetensors$"):
        bundle.open_bundle(folder).path(bundle.ONNX)


def test_a_file_is_compared_when_it_is_asked_for(folder: Path) -> None:
    opened = bundle.open_bundle(folder)
    size = (folder / bundle.ONNX).stat().st_size
    (folder / bundle.ONNX).write_bytes(bytes(size))
    with pytest.raises(UserError, match=r"model\.onnx is not what manifest\.json says"):
        opened.path(bundle.ONNX)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("manifest of another format", "manifest.json: format"),
        ("manifest with a key twice", "manifest.json: has the key 'files' twice"),
        ("manifest with a size of true", "manifest.json: files.model.onnx.bytes"),
        ("config without labels", "config.json: label_names"),
        ("a label that is half a character", "config.json: label_names[0]"),
        ("num_classes is not a number", "config.json: has NaN"),
        ("input of true by true", "config.json: headstart.input.input_size[1]"),
        ("std of zero", "config.json: headstart.input.std[1]"),
        ("a crop mode that is an object", "config.json: headstart.input.crop_mode"),
        ("temperature that is a text", "config.json: headstart.temperature"),
        ("conformal of no method", "config.json: headstart.conformal[0].method"),
        ("a target of no kind", "config.json: headstart.target.kind must be one of class, labels, number, grade"),
        ("a target without a spec", "config.json: headstart.target.spec is missing"),
        ("a target of other outputs", "config.json: num_classes must be 3"),
        ("temperatures too few", "config.json: headstart.temperatures must be a list of 4"),
        ("a temperature of a label that is negative", "config.json: headstart.temperatures[2]"),
        ("a temperature of a label that is NaN", "config.json: has NaN"),
        ("thresholds of labels that are missing", "config.json: headstart.thresholds"),
        ("a threshold of a label that is true", "config.json: headstart.thresholds[3]"),
        ("labels with the sets of classes", "config.json: headstart.conformal[0].method must be one of CRC"),
        ("labels with a list of limits", "config.json: headstart.conformal[0].threshold must be a number from 0 to 1"),
        (
            "a scale that is negative",
            "config.json: headstart.target.spec.scale[3] must be a number from 1e-30 to 1e+30",
        ),
        ("units too few", "config.json: headstart.target.spec.units must be a list of 4"),
        ("quantiles out of order", "config.json: headstart.target.spec.quantiles[1]"),
        ("quantiles twice", "config.json: headstart.target.spec.quantiles[2] is there twice"),
        ("quantiles of no outputs", "config.json: num_classes must be 12"),
        ("numbers with one limit", "config.json: headstart.conformal[0].threshold must be a list of 4"),
        ("a limit that is negative", "config.json: headstart.conformal[0].threshold[3]"),
        ("split limits of quantiles", "config.json: headstart.conformal[0].method must be one of split"),
        ("bands that are a list", "config.json: headstart.input.bands must be an object"),
        ("bands without a layout", "config.json: headstart.input.bands.layout is missing"),
        ("bands of a depth of no name", "config.json: headstart.input.bands.layout.dtype must be one of uint8, uint16"),
        ("33 bands", "config.json: headstart.input.bands.layout.channels must be a whole number from 1 to 32"),
        ("bands of other channels", "config.json: headstart.input.bands.low must be a list of 3"),
        ("planes of no name", "config.json: headstart.input.bands.layout.planes must be one of first, max"),
        ("a high that is its low", "config.json: headstart.input.bands.high[2] must be above low"),
        ("a high that is below", "config.json: headstart.input.bands.high[3] must be above low"),
        ("a high that is NaN", "config.json: has NaN"),
        ("a high that is hardly above", "config.json: headstart.input.bands.high[0] must be above low, 0"),
        ("a high that is its low, and large", "config.json: headstart.input.bands.high[0] must be above low, 1e+20"),
        ("a mean of a band beyond 1", "config.json: headstart.input.bands.mean[0] must be a number from 0 to 1"),
        ("a deviation of a band of zero", "config.json: headstart.input.bands.std[3]"),
        ("shown out of range", "config.json: headstart.input.bands.shown[0] must be a whole number from 0 to 3"),
        ("two shown", "config.json: headstart.input.bands.shown must name one band, or three"),
        ("an input of other channels than bands", "config.json: headstart.input.input_size[0]"),
        ("bands without their input", "config.json: headstart.input.input_size[0] must be a whole number from 3 to 3"),
        ("files of bands without a star", "config.json: headstart.band_files[1] must be the end of a path"),
        ("files of bands from the root", "config.json: headstart.band_files[1] must be the end of a path"),
        ("thresholds by no fraction", "config.json: headstart.out_of_distribution.thresholds.most"),
    ],
)
def test_a_refusal_names_the_file_and_the_key(tmp_path: Path, name: str, key: str) -> None:
    folder = make_hostile(tmp_path / "export", name)
    with pytest.raises(UserError, match=re.escape(f"{folder}/{key}")):
        bundle.open_bundle(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no folder"):
        bundle.open_bundle(tmp_path / "nowhere")
