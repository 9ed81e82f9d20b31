"""A bundle's ``config.json``: what predict takes from it, checked before it is used."""

import math
from dataclasses import dataclass
from typing import Any

from headstart.inference.untrusted_json import Untrusted

FORMAT = 1
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
METHODS = ("LAC", "APS")
MOST_CLASSES = 1_000_000
LARGEST_SIDE = 4096
"""In pixels, of the input and of what images are resized to before the crop."""
WIDEST = 1_000_000


@dataclass(frozen=True)
class ConformalLevel:
    """A threshold for sets of classes.

    Attributes:
        method: ``LAC`` or ``APS``.
        level: how often a set holds the right class.
        threshold: the largest score of a class in the set; infinity where every class is.
    """

    method: str
    level: float
    threshold: float


@dataclass(frozen=True)
class BundleConfig:
    """What ``config.json`` says.

    Attributes:
        architecture: timm's name of the model.
        model_args: further arguments of timm.create_model.
        classes: their names, in the order of the logits.
        descriptions: longer names of some classes.
        input: timm's data config: ``input_size`` (3, height, width), ``interpolation``, ``mean``, ``std``,
            ``crop_pct``, ``crop_mode``.
        features: width of what the classifier reads.
        temperature: softmax(logits / temperature) is calibrated; None where nothing is known.
        conformal: thresholds for sets, of softmax(logits).
        unusual: by the share of images like those of validation that it lets pass, the largest usual distance; None
            where the bundle has no features of training images.
    """

    architecture: str
    model_args: dict[str, Any]
    classes: list[str]
    descriptions: dict[str, str]
    input: dict[str, Any]
    features: int
    temperature: float | None
    conformal: list[ConformalLevel]
    unusual: dict[float, float] | None


def parse_config(content: bytes, file: str) -> BundleConfig:
    """Check the content of ``config.json``; raises UserError that names the file and the key."""
    whole = Untrusted.parse(content, file)
    ours = whole["headstart"]
    if ours["format"].integer(0, 2**31) != FORMAT:
        ours["format"].refuse(f"is not {FORMAT}: this bundle needs another version of headstart")
    temperature = ours.get("temperature")
    arguments = whole.get("model_args")
    return BundleConfig(
        architecture=whole["architecture"].text(200),
        model_args={} if arguments.value is None else {name: each.value for name, each in arguments.items()},
        classes=_classes(whole),
        descriptions=_descriptions(whole.get("label_descriptions")),
        input=_input(ours["input"]),
        features=ours["features"].integer(1, WIDEST),
        temperature=None if temperature.value is None else temperature.number(1e-3, 1e3),
        conformal=[_level(each) for each in ours["conformal"].list(0, 100)],
        unusual=_unusual(ours.get("out_of_distribution")),
    )


def _classes(whole: Untrusted) -> list[str]:
    labels = whole["label_names"]
    names = [each.text(1000) for each in labels.list(1, MOST_CLASSES)]
    if len(set(names)) < len(names):
        labels.refuse("holds a name twice")
    if whole["num_classes"].integer(1, MOST_CLASSES) != len(names):
        whole["num_classes"].refuse(f"must be the number of label_names, {len(names)}")
    return names


def _descriptions(found: Untrusted) -> dict[str, str]:
    return {} if found.value is None else {name: each.text() for name, each in found.items()}


def _input(found: Untrusted) -> dict[str, Any]:
    channels, height, width = found["input_size"].list(3, 3)
    size = (channels.integer(3, 3), height.integer(1, LARGEST_SIDE), width.integer(1, LARGEST_SIDE))
    crop_pct = found["crop_pct"].number(1e-3, 1)
    if math.floor(max(size) / crop_pct) > LARGEST_SIDE:
        found["crop_pct"].refuse(f"asks for images of more than {LARGEST_SIDE} pixels a side before the crop")
    return {
        "input_size": size,
        "interpolation": found["interpolation"].one_of(INTERPOLATIONS),
        "mean": tuple(each.number(0, 1) for each in found["mean"].list(3, 3)),
        "std": tuple(each.number(1e-6, 1e6) for each in found["std"].list(3, 3)),
        "crop_pct": crop_pct,
        "crop_mode": found["crop_mode"].one_of(CROP_MODES),
    }


def _level(found: Untrusted) -> ConformalLevel:
    limit = found["threshold"]
    return ConformalLevel(
        found["method"].one_of(METHODS),
        found["level"].number(0, 1),
        math.inf if limit.value is None else limit.number(-1e-6, 1 + 1e-6),
    )


def _unusual(found: Untrusted) -> dict[float, float] | None:
    if found.value is None:
        return None
    limits = {}
    for share, limit in found["thresholds"].items():
        try:
            limits[float(share)] = limit.number(-1e-6, 2 + 1e-6)
        except ValueError:
            limit.refuse("stands under a key that is no number")
    return dict(sorted(limits.items()))
