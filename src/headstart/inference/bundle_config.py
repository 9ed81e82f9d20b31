"""A bundle's ``config.json``, and the checks that its values and those of ``manifest.json`` pass.

A bundle may come from strangers: a value is checked for type and range where it is read, and what is wrong is a
UserError that names the file and the key. The checks are written by hand: importing pydantic takes as long as a whole
first answer (0.29 s of CPU time; msgspec 0.04 s, for one more compiled dependency), and neither refuses a key that
stands twice.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from headstart.core.errors import UserError
from headstart.images.preprocess import CROP_MODES, INTERPOLATIONS
from headstart.targets.classes import METHODS

FORMAT = 1
MAX_CLASSES = 1_000_000
MAX_FEATURES = 1_000_000
MAX_SIDE = 4096
"""In pixels, of the input and of what images are resized to before the crop."""


@dataclass(frozen=True)
class ConformalLevel:
    """A threshold for prediction sets."""

    method: str  # ``LAC`` or ``APS``
    level: float  # how often a set contains the right class, 0 to 1
    threshold: float  # the largest score of a class in the set; infinity where every class is in it


@dataclass(frozen=True)
class BundleConfig:
    """The content of ``config.json``."""

    architecture: str  # timm's name of the model
    model_args: dict[str, Any]  # further arguments of timm.create_model
    classes: list[str]  # in the order of the logits
    descriptions: dict[str, str]  # longer names of some classes
    input: dict[str, Any]  # timm's data config, with ``input_size`` (3, height, width)
    features: int  # the width of what the classifier reads
    temperature: float | None  # softmax(logits / temperature) is calibrated; None where it was not fitted
    conformal: list[ConformalLevel]  # of softmax(logits)
    ood_thresholds: dict[float, float] | None
    """The largest distance to the training images, by the fraction of validation images within it; None where the
    bundle has no features of training images."""


@dataclass(frozen=True)
class JsonValue:
    """A value of an untrusted JSON file; each method returns it as one type, or raises UserError."""

    value: Any
    file: str
    key: str = ""

    def refuse(self, problem: str) -> NoReturn:
        """Raise UserError with the file and the key."""
        raise UserError(" ".join(filter(None, (f"{self.file}:", self.key, problem))))

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("must be an object")
        return self.value

    def __getitem__(self, name: str) -> "JsonValue":
        printable = name[:100] if name.isprintable() else ascii(name[:100])[1:-1]
        child = JsonValue(self._object().get(name), self.file, f"{self.key}.{printable}".removeprefix("."))
        if name not in self.value:
            child.refuse("is missing")
        return child

    def get(self, name: str) -> "JsonValue | None":
        """Return the value of a key of an object, None where the key is missing or its value is null."""
        return None if self._object().get(name) is None else self[name]

    def items(self) -> Iterator[tuple[str, "JsonValue"]]:
        """Yield each key of an object with its value."""
        return ((name, self[name]) for name in self._object())

    def list(self, least: int, most: int) -> "list[JsonValue]":
        """Return the entries of a list of ``least`` to ``most``."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            self.refuse(f"must be a list of {least}" + (f" to {most}" if least < most else ""))
        return [JsonValue(each, self.file, f"{self.key}[{i}]") for i, each in enumerate(self.value)]

    def number(self, least: float, most: float) -> float:
        """Return a finite number from ``least`` to ``most``."""
        if type(self.value) not in (int, float) or not least <= self.value <= most:
            self.refuse(f"must be a number from {least:g} to {most:g}")
        return float(self.value)

    def integer(self, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        if type(self.value) is not int or not least <= self.value <= most:  # True is no whole number
            self.refuse(f"must be a whole number from {least} to {most}")
        return self.value

    def text(self, longest: int = 10_000) -> str:
        """Return a text that can be written in UTF-8."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= longest:
            self.refuse(f"must be a text of 1 to {longest} characters")
        if any("\ud800" <= character <= "\udfff" for character in self.value):
            self.refuse("has half of a surrogate pair")
        return self.value

    def one_of(self, *allowed: str) -> str:
        """Return a text that is one of those allowed."""
        if not isinstance(self.value, str) or self.value not in allowed:
            self.refuse(f"must be one of {', '.join(allowed)}")
        return self.value


def parse_json(content: bytes, file: str) -> JsonValue:
    """Parse JSON in UTF-8; raises UserError for a key that stands twice, NaN, infinity, and too deep nesting."""
    root = JsonValue(None, file)

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                root.refuse(f"has the key {key[:100]!r} twice")
        return dict(pairs)

    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=lambda name: root.refuse(f"has {name}, which is no number in JSON"),
        )
    except RecursionError:
        root.refuse("is nested too deeply")
    except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
        root.refuse(f"is not JSON: {error}")
    return JsonValue(value, file)


def check_format(value: JsonValue) -> None:
    """Raise UserError where a file is of another version of the bundle's format."""
    if value.integer(0, 2**31) != FORMAT:
        value.refuse(f"is not {FORMAT}: this bundle needs another version of headstart")


def parse_config(content: bytes, file: str) -> BundleConfig:
    """Check the content of ``config.json``; raises UserError that names the file and the key."""
    root = parse_json(content, file)
    ours = root["headstart"]
    check_format(ours["format"])
    classes = [each.text(1000) for each in root["label_names"].list(1, MAX_CLASSES)]
    if len(set(classes)) < len(classes):
        root["label_names"].refuse("has a name twice")
    if root["num_classes"].integer(1, MAX_CLASSES) != len(classes):
        root["num_classes"].refuse(f"must be the number of label_names, {len(classes)}")
    temperature, ood = ours.get("temperature"), ours.get("out_of_distribution")
    model_args, descriptions = root.get("model_args"), root.get("label_descriptions")
    return BundleConfig(
        architecture=root["architecture"].text(200),
        model_args={name: each.value for name, each in model_args.items()} if model_args else {},
        classes=classes,
        descriptions={name: each.text() for name, each in descriptions.items()} if descriptions else {},
        input=_input(ours["input"]),
        features=ours["features"].integer(1, MAX_FEATURES),
        temperature=temperature.number(1e-3, 1e3) if temperature else None,
        conformal=[_conformal_level(each) for each in ours["conformal"].list(0, 100)],
        ood_thresholds=_ood_thresholds(ood["thresholds"]) if ood else None,
    )


def _input(value: JsonValue) -> dict[str, Any]:
    channels, height, width = value["input_size"].list(3, 3)
    size = (channels.integer(3, 3), height.integer(1, MAX_SIDE), width.integer(1, MAX_SIDE))
    crop_pct = value["crop_pct"].number(1e-3, 1)
    if math.floor(max(size) / crop_pct) > MAX_SIDE:
        value["crop_pct"].refuse(f"asks for images of more than {MAX_SIDE} pixels a side before the crop")
    return {
        "input_size": size,
        "interpolation": value["interpolation"].one_of(*INTERPOLATIONS),
        "mean": tuple(each.number(0, 1) for each in value["mean"].list(3, 3)),
        "std": tuple(each.number(1e-6, 1e6) for each in value["std"].list(3, 3)),
        "crop_pct": crop_pct,
        "crop_mode": value["crop_mode"].one_of(*CROP_MODES),
    }


def _conformal_level(value: JsonValue) -> ConformalLevel:
    given = value["threshold"]
    threshold = math.inf if given.value is None else given.number(-1e-6, 1 + 1e-6)
    return ConformalLevel(value["method"].one_of(*METHODS), value["level"].number(0, 1), threshold)


def _ood_thresholds(value: JsonValue) -> dict[float, float]:
    thresholds = {}
    for fraction, threshold in value.items():
        try:
            thresholds[float(fraction)] = threshold.number(-1e-6, 2 + 1e-6)
        except ValueError:
            threshold.refuse("has a key that is no number")
    return dict(sorted(thresholds.items()))
