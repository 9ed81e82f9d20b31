"""A bundle's ``config.json``, and the checks that its values and those of ``manifest.json`` pass.

A bundle may come from strangers; what is the target's, the target checks.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

from headstart.core.json_value import JsonValue, parse_json
from headstart.images.band_files import is_pattern
from headstart.images.bands import DEPTHS, MAX_BANDS, PLANES, Bands, Depth, PixelLayout, Planes
from headstart.images.preprocess import CROP_MODES, INTERPOLATIONS
from headstart.targets.classes import Classes
from headstart.targets.kinds import KINDS
from headstart.targets.target import Target

FORMAT = 1
MAX_CLASSES = 1_000_000
MAX_FEATURES = 1_000_000
MAX_VALUE, LEAST_RANGE = 1e38, 1e-30
"""Of a band's values, and from its low end to its high one: what float32 computes with."""
MAX_SIDE = 4096
"""In pixels, of the input and of what images are resized to before the crop."""


@dataclass(frozen=True)
class BundleConfig:
    """The content of ``config.json``."""

    architecture: str  # timm's name of the model
    model_args: dict[str, Any]  # further arguments of timm.create_model
    target: Target  # of the logits
    descriptions: dict[str, str]  # longer names of some classes
    input: dict[str, Any]  # timm's data config, ``input_size`` (channels, height, width) in it, and perhaps ``bands``
    features: int  # the width of what the classifier reads
    fitted: dict[str, Any] | None  # what ``Target.fit`` returned of validation; None where nothing was fitted
    conformal: list[dict[str, Any]]  # what ``Target.conformal`` returned
    ood_thresholds: dict[float, float] | None
    """The largest distance to the training images, by the fraction of validation images within it; None where the
    bundle has no features of training images."""
    band_files: tuple[str, ...] = ()
    """Patterns of the files with an image's bands, one for each band's file; none where an image is one file."""

    @property
    def classes(self) -> list[str]:
        """The names of the target's parts, in the order of the logits."""
        return [*self.target.names]


def check_format(value: JsonValue) -> None:
    """Raise UserError where a file is of another version of the bundle's format."""
    if value.integer(0, 2**31) != FORMAT:
        value.refuse(f"is not {FORMAT}: this bundle needs another version of headstart")


def parse_config(content: bytes, file: str) -> BundleConfig:
    """Check the content of ``config.json``; raises UserError that names the file and the key."""
    root = parse_json(content, file)
    ours = root["headstart"]
    check_format(ours["format"])
    target, ood = _target(root["label_names"], ours.get("target")), ours.get("out_of_distribution")
    band_files = ours.get("band_files")
    if root["num_classes"].integer(1, MAX_CLASSES) != target.outputs:
        root["num_classes"].refuse(f"must be {target.outputs}, by the number of label_names and the target")
    model_args, descriptions = root.get("model_args"), root.get("label_descriptions")
    return BundleConfig(
        architecture=root["architecture"].text(200),
        model_args={name: each.value for name, each in model_args.items()} if model_args else {},
        target=target,
        descriptions={name: each.text() for name, each in descriptions.items()} if descriptions else {},
        input=_input(ours["input"]),
        features=ours["features"].integer(1, MAX_FEATURES),
        fitted=target.checked_fit(ours),
        conformal=[target.checked_level(each) for each in ours["conformal"].list(0, 100)],
        ood_thresholds=_ood_thresholds(ood["thresholds"]) if ood else None,
        band_files=_band_files(band_files) if band_files else (),
    )


def _target(label_names: JsonValue, about: JsonValue | None) -> Target:
    """Return what the logits mean; bundles of earlier versions do not say it: theirs are of classes."""
    names = [each.text(1000) for each in label_names.list(1, MAX_CLASSES)]
    if len(set(names)) < len(names):
        label_names.refuse("has a name twice")
    if about is None:
        return Classes(names)
    target: Target = KINDS[about["kind"].one_of(*KINDS)].checked(names, about["spec"])
    return target


def _bands(value: JsonValue) -> Bands:
    layout = value["layout"]
    channels, planes = layout["channels"].integer(1, MAX_BANDS), layout.get("planes")
    depth = cast("Depth", layout["dtype"].one_of(*DEPTHS))
    wanted = cast("Planes", planes.one_of(*PLANES)) if planes else None

    def numbers(key: str, least: float, most: float) -> tuple[float, ...]:
        return tuple(each.number(least, most) for each in value[key].list(channels, channels))

    low, high = numbers("low", -MAX_VALUE, MAX_VALUE), numbers("high", -MAX_VALUE, MAX_VALUE)
    for least, each in zip(low, value["high"].list(channels, channels), strict=True):
        if not each.value - least >= LEAST_RANGE:
            each.refuse(f"must be above low, {least:g}")
    shown = tuple(each.integer(0, channels - 1) for each in value["shown"].list(1, 3))
    if len(shown) == 2:
        value["shown"].refuse("must name one band, or three")
    mean, std = numbers("mean", 0, 1), numbers("std", 1e-6, 1e6)
    return Bands(PixelLayout(channels, depth, wanted), low, high, mean, std, shown)


def _band_files(value: JsonValue) -> tuple[str, ...]:
    patterns = value.list(2, MAX_BANDS)
    for each in patterns:
        if not is_pattern(each.text(1000)):
            each.refuse("must be the end of a path with one * in its last part")
    return tuple(each.value for each in patterns)


def _input(value: JsonValue) -> dict[str, Any]:
    about = value.get("bands")
    of_bands = {"bands": _bands(about).record()} if about else {}
    bands = of_bands["bands"]["layout"]["channels"] if about else 3
    channels, height, width = value["input_size"].list(3, 3)
    size = (channels.integer(bands, bands), height.integer(1, MAX_SIDE), width.integer(1, MAX_SIDE))
    crop_pct = value["crop_pct"].number(1e-3, 1)
    if math.floor(max(size) / crop_pct) > MAX_SIDE:
        value["crop_pct"].refuse(f"asks for images of more than {MAX_SIDE} pixels a side before the crop")
    return {
        "input_size": size,
        "interpolation": value["interpolation"].one_of(*INTERPOLATIONS),
        "mean": tuple(each.number(0, 1) for each in value["mean"].list(bands, bands)),
        "std": tuple(each.number(1e-6, 1e6) for each in value["std"].list(bands, bands)),
        "crop_pct": crop_pct,
        "crop_mode": value["crop_mode"].one_of(*CROP_MODES),
        **of_bands,
    }


def _ood_thresholds(value: JsonValue) -> dict[float, float]:
    thresholds = {}
    for fraction, threshold in value.items():
        try:
            thresholds[float(fraction)] = threshold.number(-1e-6, 2 + 1e-6)
        except ValueError:
            threshold.refuse("has a key that is no number")
    return dict(sorted(thresholds.items()))
