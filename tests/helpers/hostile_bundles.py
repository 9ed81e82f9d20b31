"""Malicious and damaged bundles: each is a good one with one thing changed, and a manifest that fits the change.

PYTHONPATH=tests python -m helpers.hostile_bundles FOLDER writes them all, to try things by hand.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.core import paths
from headstart.core.io import read_json, write_json
from headstart.inference import bundle
from helpers.bands import bands_of
from helpers.bundles import BANDS, Change, copy_bundle, with_content, with_fitting_manifest
from helpers.hostile_graphs import GRAPHS


class Runs:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def make_hostile(folder: Path, name: str) -> Path:
    """Write the bundle of this name; if anything in it is ever executed, ``executed`` appears beside it."""
    HOSTILE[name](copy_bundle(folder, bands=name in OF_BANDS))
    return folder


def _config(*path: str | int, value: Any) -> Change:
    """Set a value of config.json."""

    def change(folder: Path) -> None:
        content = read_json(folder / paths.MODEL_CONFIG)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / paths.MODEL_CONFIG).write_text(json.dumps(content))

    return with_fitting_manifest(change)


GOOD: dict[str, dict[str, Any]] = {
    "labels": {
        "target": {"kind": "labels", "spec": {}},
        "temperatures": [1.5] * 4,
        "thresholds": [0.5] * 4,
        "conformal": [{"method": "CRC", "level": 0.9, "threshold": 0.25}],
    },
    "number": {
        "target": {
            "kind": "number",
            "spec": {"units": ["kg", "", "°", "years"], "mean": [0, 1, 2, 30.5], "scale": [1, 0.1, 100, 8]},
        },
        "conformal": [{"method": "split", "level": 0.9, "threshold": [1, 0.5, None, 4]}],
    },
}
"""What ``headstart`` in config.json has of a model of four labels or numbers; its outputs are those of the classes."""


def set_target(folder: Path, entries: dict[str, Any]) -> None:
    """Change what a bundle says of its target; a manifest that fits has to be written."""
    content = read_json(folder / paths.MODEL_CONFIG)
    content["headstart"] |= entries
    (folder / paths.MODEL_CONFIG).write_text(json.dumps(content))


def _target(kind: str, **entries: Any) -> Change:
    return with_fitting_manifest(lambda folder: set_target(folder, GOOD[kind] | entries))


def _spec(**changes: Any) -> Change:
    target = GOOD["number"]["target"]
    return _target("number", target={"kind": "number", "spec": target["spec"] | changes})


def _limits(limits: Any, method: str = "split") -> Change:
    return _target("number", conformal=[{"method": method, "level": 0.9, "threshold": limits}])


def _without(key: str) -> Change:
    def change(folder: Path) -> None:
        content = read_json(folder / paths.MODEL_CONFIG)
        del content[key]
        write_json(folder / paths.MODEL_CONFIG, content)

    return with_fitting_manifest(change)


def _manifest(change: Callable[[dict[str, Any]], None]) -> Change:
    def changed(folder: Path) -> None:
        content = read_json(folder / bundle.BUNDLE_MANIFEST)
        change(content)
        (folder / bundle.BUNDLE_MANIFEST).write_text(json.dumps(content))

    return changed


def _replaced(name: str, make: Change) -> Change:
    """Put something else in the place of a file; the manifest stays as it was."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def _npy_header(text: str) -> Callable[[Path], bytes]:
    header = text.encode() + b"\n"
    return lambda _: b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _array(array: Any, **options: Any) -> Change:
    return with_fitting_manifest(lambda folder: np.save(folder / bundle.REFERENCE, array, **options))


def _pickled(folder: Path) -> bytes:
    return pickle.dumps(Runs(folder.parent / "executed"))


def _object_array(folder: Path) -> None:
    array = np.array([Runs(folder.parent / "executed")], dtype=object)
    np.save(folder / bundle.REFERENCE, array, allow_pickle=True)


MANIFESTS: dict[str, Change] = {
    "no manifest": lambda folder: (folder / bundle.BUNDLE_MANIFEST).unlink(),
    "manifest is no JSON": lambda folder: (folder / bundle.BUNDLE_MANIFEST).write_text("{"),
    "manifest of another format": _manifest(lambda content: content.update(format=2)),
    "manifest of a million nested lists": lambda folder: (folder / bundle.BUNDLE_MANIFEST).write_text("[" * 10**6),
    "manifest of 70 MB": lambda folder: (folder / bundle.BUNDLE_MANIFEST).write_bytes(b" " * 70 * 2**20),
    "manifest with a key twice": lambda folder: (folder / bundle.BUNDLE_MANIFEST).write_text(
        '{"format": 1, "files": {}, "files": {}}'
    ),
    "manifest lists a path above": _manifest(
        lambda content: content["files"].update({"../passwd": content["files"][paths.MODEL_CONFIG]})
    ),
    "manifest lists an absolute path": _manifest(
        lambda content: content["files"].update({"/etc/passwd": content["files"][paths.MODEL_CONFIG]})
    ),
    "manifest lists a name of two lines": _manifest(
        lambda content: content["files"].update({"a\nb": content["files"][paths.MODEL_CONFIG]})
    ),
    "manifest lists a name of half a character": _manifest(
        lambda content: content["files"].update({"\ud800": content["files"][paths.MODEL_CONFIG]})
    ),
    "manifest lists what is not there": _manifest(
        lambda content: content["files"].update({"more": content["files"][paths.MODEL_CONFIG]})
    ),
    "manifest without the model": _manifest(lambda content: content["files"].pop(bundle.ONNX)),
    "manifest with a negative size": _manifest(lambda content: content["files"][bundle.ONNX].update(bytes=-1)),
    "manifest with a size of true": _manifest(lambda content: content["files"][bundle.ONNX].update(bytes=True)),
    "manifest with another hash": _manifest(lambda content: content["files"][bundle.ONNX].update(sha256="0" * 64)),
    "manifest of a list": lambda folder: (folder / bundle.BUNDLE_MANIFEST).write_text("[]"),
    "one bit of the model changed": lambda folder: _flip(folder / bundle.ONNX),
    "one bit of the config changed": lambda folder: _flip(folder / paths.MODEL_CONFIG),
    "config is a folder": _replaced(paths.MODEL_CONFIG, Path.mkdir),
    "config is a pipe": _replaced(paths.MODEL_CONFIG, os.mkfifo),
    "model is a pipe": _replaced(bundle.ONNX, os.mkfifo),
    "model is a device": _replaced(bundle.ONNX, lambda path: path.symlink_to("/dev/zero")),
    "model is a link out": _replaced(bundle.ONNX, lambda path: path.symlink_to("/etc/passwd")),
    "manifest is a pipe": _replaced(bundle.BUNDLE_MANIFEST, os.mkfifo),
    "reference is a link to itself": _replaced(bundle.REFERENCE, lambda path: path.symlink_to(path.name)),
}
CONFIGS: dict[str, Change] = {
    "config is no UTF-8": with_content(paths.MODEL_CONFIG, lambda _: b"\xff\xfe{}"),
    "config is a pickle": with_content(paths.MODEL_CONFIG, _pickled),
    "config of a million nested objects": with_content(paths.MODEL_CONFIG, lambda _: b'{"a":' * 10**6),
    "config of one digit after another": with_content(paths.MODEL_CONFIG, lambda _: b"9" * 10**6),
    "config without labels": _without("label_names"),
    "config without headstart": _without("headstart"),
    "labels that are one text": _config("label_names", value="cats"),
    "labels twice": _config("label_names", value=["cat", "cat", "owl", "yak"]),
    "labels too few": _config("label_names", value=["cat"]),
    "a label that is half a character": _config("label_names", 0, value="\ud800"),
    "a label that is a number": _config("label_names", 0, value=7),
    "num_classes is not a number": _config("num_classes", value=float("nan")),
    "num_classes is gigantic": _config("num_classes", value=10**30),
    "input of a billion pixels a side": _config("headstart", "input", "input_size", value=[3, 10**9, 10**9]),
    "input of a negative height": _config("headstart", "input", "input_size", value=[3, -32, 32]),
    "input of true by true": _config("headstart", "input", "input_size", value=[3, True, True]),
    "input of other sides": _config("headstart", "input", "input_size", value=[3, 64, 64]),
    "std of zero": _config("headstart", "input", "std", value=[0.2, 0, 0.3]),
    "std of infinity": _config("headstart", "input", "std", value=[0.2, float("inf"), 0.3]),
    "mean of two": _config("headstart", "input", "mean", value=[0.5, 0.5]),
    "crop of nearly nothing": _config("headstart", "input", "crop_pct", value=1e-300),
    "an interpolation of no name": _config("headstart", "input", "interpolation", value="__class__"),
    "a crop mode that is an object": _config("headstart", "input", "crop_mode", value={}),
    "features of no width": _config("headstart", "features", value=0),
    "temperature of zero": _config("headstart", "temperature", value=0),
    "temperature that is a text": _config("headstart", "temperature", value="1.5"),
    "conformal of no method": _config("headstart", "conformal", 0, "method", value="os.system"),
    "thresholds by no fraction": _config("headstart", "out_of_distribution", "thresholds", value={"most": 1}),
    "format of tomorrow": _config("headstart", "format", value=2),
}
TARGETS: dict[str, Change] = {
    "a target that is a text": _target("labels", target="labels"),
    "a target without a kind": _target("labels", target={"spec": {}}),
    "a target of no kind": _target("labels", target={"kind": "__class__", "spec": {}}),
    "a target of a kind that is a list": _target("labels", target={"kind": ["labels"], "spec": {}}),
    "a target without a spec": _target("number", target={"kind": "number"}),
    "a target of other outputs": _target("labels", target={"kind": "grade", "spec": {}}),
    "temperatures too few": _target("labels", temperatures=[1, 1, 1]),
    "temperatures too many": _target("labels", temperatures=[1] * 10**5),
    "temperatures that are one number": _target("labels", temperatures=1.5),
    "a temperature of a label that is negative": _target("labels", temperatures=[1, 1, -1, 1]),
    "a temperature of a label that is NaN": _target("labels", temperatures=[1, 1, float("nan"), 1]),
    "thresholds of labels that are missing": _target("labels", thresholds=None),
    "thresholds of labels above one": _target("labels", thresholds=[0.5, 0.5, 0.5, 1.5]),
    "a threshold of a label that is a text": _target("labels", thresholds=[0.5, 0.5, 0.5, "0.5"]),
    "a threshold of a label that is true": _target("labels", thresholds=[0.5, 0.5, 0.5, True]),
    "labels with the sets of classes": _target("labels", conformal=[{"method": "LAC", "level": 0.9, "threshold": 0.5}]),
    "labels with a list of limits": _target(
        "labels", conformal=[{"method": "CRC", "level": 0.9, "threshold": [0.5] * 4}]
    ),
    "units too few": _spec(units=["kg"]),
    "a unit that is a number": _spec(units=["kg", 1, "kg", "kg"]),
    "a unit that is a book": _spec(units=["kg", "kg", "kg", "k" * 10**6]),
    "means that are missing": _spec(mean=None),
    "a mean of a googol": _spec(mean=[0, 0, 0, 1e100]),
    "a scale of zero": _spec(scale=[1, 1, 1, 0]),
    "a scale that is negative": _spec(scale=[1, 1, 1, -1]),
    "a scale of infinity": _spec(scale=[1, 1, 1, float("inf")]),
    "quantiles out of order": _spec(quantiles=[0.95, 0.5, 0.05]),
    "quantiles twice": _spec(quantiles=[0.05, 0.5, 0.5]),
    "quantiles above one": _spec(quantiles=[0.05, 0.5, 95]),
    "quantiles of no outputs": _spec(quantiles=[0.05, 0.5, 0.95]),
    "quantiles that are an object": _spec(quantiles={"0.5": 1}),
    "numbers with one limit": _limits(1.0),
    "numbers with limits too few": _limits([1.0]),
    "a limit that is negative": _limits([1, 1, 1, -1]),
    "a limit of NaN": _limits([1, 1, 1, float("nan")]),
    "a limit of a googol": _limits([1, 1, 1, 1e100]),
    "split limits of quantiles": _limits([1, 1, 1, 1], method="CQR"),
}


def _with_range(low: float, high: float) -> Change:
    """Set both ends of the first band's range."""

    def change(folder: Path) -> None:
        content = read_json(folder / paths.MODEL_CONFIG)
        bands = content["headstart"]["input"]["bands"]
        bands["low"][0], bands["high"][0] = low, high
        write_json(folder / paths.MODEL_CONFIG, content)

    return with_fitting_manifest(change)


def _three_bands(folder: Path) -> None:
    """Let ``config.json`` agree with itself on three bands; ``model.onnx`` has four."""
    content = read_json(folder / paths.MODEL_CONFIG)
    about = content["headstart"]["input"]
    about["bands"] = bands_of("uint16", 3).record()
    about |= {"input_size": [3, 32, 32], "mean": about["mean"][:3], "std": about["std"][:3]}
    write_json(folder / paths.MODEL_CONFIG, content)
    bundle.write_manifest(folder)


def _bands(*path: str | int, value: Any) -> Change:
    return _config("headstart", "input", "bands", *path, value=value)


OF_BANDS: dict[str, Change] = {
    "bands that are a list": _config("headstart", "input", "bands", value=[1]),
    "bands without a layout": _config("headstart", "input", "bands", value={"low": [0] * 4}),
    "bands of a depth of no name": _bands("layout", "dtype", value="complex128"),
    "bands of a depth that is a list": _bands("layout", "dtype", value=["uint16"]),
    "33 bands": _bands("layout", "channels", value=33),
    "bands of no number": _bands("layout", "channels", value=0),
    "bands of true": _bands("layout", "channels", value=True),
    "bands of other channels": _bands("layout", "channels", value=3),
    "planes of no name": _bands("layout", "planes", value="all"),
    "lows too few": _bands("low", value=[0, 0, 0]),
    "lows too many": _bands("low", value=[0] * 10**5),
    "a low that is a text": _bands("low", 1, value="0"),
    "a low of a googol": _bands("low", 1, value=-1e100),
    "a high that is its low": _bands("high", 2, value=BANDS.low[2]),
    "a high that is below": _bands("high", 3, value=-5),
    "a high that is NaN": _bands("high", 0, value=float("nan")),
    "a high that is hardly above": _with_range(0, 1e-300),
    "a high that is its low, and large": _with_range(1e20, 1e20),
    "a mean of a band beyond 1": _bands("mean", 0, value=1.5),
    "means of bands that are missing": _bands("mean", value=None),
    "a deviation of a band of zero": _bands("std", 3, value=0),
    "a deviation of a band that is negative": _bands("std", 3, value=-0.2),
    "shown out of range": _bands("shown", value=[4]),
    "shown that is negative": _bands("shown", value=[-1]),
    "two shown": _bands("shown", value=[0, 1]),
    "none shown": _bands("shown", value=[]),
    "all shown": _bands("shown", value=[0, 1, 2, 3]),
    "an input of other channels than bands": _config("headstart", "input", "input_size", value=[3, 32, 32]),
    "bands without their input": _config("headstart", "input", "bands", value=None),
    "bands that the model has not": _three_bands,
    "files of bands that are one text": _config("headstart", "band_files", value="*_a.tif"),
    "files of bands of one pattern": _config("headstart", "band_files", value=["*_a.tif"]),
    "files of bands without a star": _config("headstart", "band_files", value=["*_a.tif", "b.tif"]),
    "files of bands with a star above": _config("headstart", "band_files", value=["*_a.tif", "*/b.tif"]),
    "files of bands from the root": _config("headstart", "band_files", value=["*_a.tif", "/etc/*"]),
    "files of bands that are numbers": _config("headstart", "band_files", value=["*_a.tif", 2]),
}
"""Of bundles of images with bands."""
REFERENCES: dict[str, Change] = {
    "reference is a pickle": with_content(bundle.REFERENCE, _pickled),
    "reference of pickled objects": with_fitting_manifest(_object_array),
    "reference of 2^60 rows": with_content(
        bundle.REFERENCE, _npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**60}, 96)}}")
    ),
    "reference of negative rows": with_content(
        bundle.REFERENCE, _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 96)}")
    ),
    "reference with code in its header": with_content(
        bundle.REFERENCE, _npy_header("__import__('os').mkdir('executed')")
    ),
    "reference with a deep header": with_content(bundle.REFERENCE, _npy_header("(" * 9000)),
    "reference of another width": _array(np.zeros((5, 7), np.float32)),
    "reference of float64": _array(np.zeros((5, 96))),
    "reference of NaN": _array(np.full((5, 96), np.nan, np.float32)),
    "reference of no rows": _array(np.zeros((0, 96), np.float32)),
    "reference cut off": with_content(bundle.REFERENCE, lambda folder: (folder / bundle.REFERENCE).read_bytes()[:-5]),
    "reference is a zip": with_content(bundle.REFERENCE, lambda _: b"PK\x03\x04" + bytes(100)),
}
OTHERS: dict[str, Change] = {"model is a pickle": with_content(bundle.ONNX, _pickled)}
HOSTILE = OTHERS | MANIFESTS | CONFIGS | TARGETS | OF_BANDS | REFERENCES | GRAPHS


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


if __name__ == "__main__":
    for each in HOSTILE:
        make_hostile(Path(sys.argv[1]) / each.replace(" ", "_").replace("/", ""), each)
    print(len(HOSTILE), "bundles")
