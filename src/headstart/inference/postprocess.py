"""From the model's outputs to a prediction: what the target answers, how sure that is, the distance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.inference.bundle import Bundle
from headstart.inference.scores import distances
from headstart.targets.target import PredictedNumber

DEFAULT_TOP = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image. CSV, JSON and Parquet name some fields otherwise (``writers.OUTPUT_NAMES``).

    A model of classes or grades fills ``label``, ``probability`` and ``top``, one of labels ``labels`` and ``top``, one
    of numbers ``numbers``; what it does not fill is None or empty, as all but the image where there is an error.

    Attributes:
        image: its path; empty where it came without one.
        label: the likeliest class, or the median grade.
        probability: of that class or grade.
        top: the likeliest classes or labels with their probabilities, the likeliest first; of grades ``label`` first.
        prediction_set: classes that include the right one as often as the conformal level says, the likeliest first;
            with the method LAC it may be empty. Of grades neighbours, in their order; of labels those that miss no more
            of an image's labels than the level says, on average. None where the bundle has no levels.
        ood_distance: of the image's features to those of training images, 0 to 2; None where the bundle has none of
            them.
        ood_level: where the image is out of distribution, the largest fraction (0.95, 0.99) of validation images that
            are all nearer than it; else None.
        error: why there is no prediction.
        labels: those above their thresholds, by name with their probabilities, the likeliest first.
        numbers: each with its name, unit and interval.
    """

    image: str = ""
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    prediction_set: list[str] | None = None
    ood_distance: float | None = None
    ood_level: float | None = None
    error: str | None = None
    labels: dict[str, float] | None = None
    numbers: list[PredictedNumber] | None = None

    # Of the first number, which is often the only one.
    value = property(lambda self: self.numbers and self.numbers[0].value)
    unit = property(lambda self: self.numbers and self.numbers[0].unit)
    interval = property(lambda self: self.numbers and self.numbers[0].interval)

    # The former names of four fields.
    picture = property(lambda self: self.image)
    set = property(lambda self: self.prediction_set)
    distance = property(lambda self: self.ood_distance)
    unusual = property(lambda self: self.ood_level)


class Postprocessor:
    """Turns logits and features into predictions, as ``Predictor`` was asked to."""

    def __init__(
        self, bundle: Bundle, *, calibrated: bool, level: float | None, method: str | None, top: int | None
    ) -> None:
        """Read the bundle's calibration; raises UserError where it has no such temperature, level or likeliest ones."""
        fitted, target = bundle.config.fitted, bundle.config.target
        if calibrated and not fitted:
            why = "as its model was not calibrated" if fitted is None else f"as {target.nouns} have no probabilities"
            raise UserError(f"{bundle.folder} has no temperature, {why}: omit --calibrated")
        if top is not None and top < 1:
            raise UserError(f"top must be at least 1, not {top}")
        if top is not None and "top" not in target.answer_fields:
            raise UserError(f"{bundle.folder} answers with all of its {target.nouns}, none is likeliest: omit --top")
        self._config, self._top = bundle.config, top or DEFAULT_TOP
        self._fitted = fitted if fitted and calibrated else target.uncalibrated(fitted)
        self._ood_reference = bundle.ood_reference()
        self._level = _choose_level(bundle, level, method)

    def __call__(self, logits: NDArray[np.float32], features: NDArray[np.float32]) -> list[Prediction]:
        """Return a prediction for each row of logits, float32 (n, outputs), and features, float32 (n, width)."""
        finite = np.asarray(np.isfinite(np.hstack([logits, features])).all(axis=1))
        logits, features = (np.where(finite[:, None], each, np.float32(0)) for each in (logits, features))
        target, far = self._config.target, [None] * len(logits)
        if self._ood_reference is not None:
            far = distances(features, self._ood_reference).tolist()
        predictions = []
        for i, answer in enumerate(target.answers(logits, self._fitted, self._level, self._top)):
            if not finite[i]:
                predictions.append(Prediction(error="the model's outputs are no finite numbers"))
                continue
            level = self._ood_level(far[i])
            predictions.append(Prediction(**target.prediction(answer), ood_distance=far[i], ood_level=level))
        return predictions

    def _ood_level(self, distance: float | None) -> float | None:
        if distance is None:
            return None
        thresholds = self._config.ood_thresholds or {}
        return max((fraction for fraction, limit in thresholds.items() if distance > limit), default=None)


def _choose_level(bundle: Bundle, level: float | None, method: str | None) -> Mapping[str, Any] | None:
    """Return the first of a bundle's levels that matches; None where it has none and none was asked for."""
    levels = bundle.config.conformal
    for each in levels:
        if level in (None, each["level"]) and method in (None, each["method"]):
            return each
    if level is None and method is None:
        return None
    available = ", ".join(f"{each['level']:g} by {each['method']}" for each in levels) or "none"
    wanted = " by ".join(str(each) for each in (level, method) if each is not None)
    raise UserError(f"{bundle.folder} has no conformal sets or intervals of {wanted}: it has {available}")
