"""From the model's outputs to a prediction: classes and probabilities, the prediction set, the distance."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.inference.bundle import Bundle
from headstart.inference.bundle_config import ConformalLevel
from headstart.inference.scores import distances
from headstart.targets.classes import nonconformity, softmax


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image. CSV, JSON and Parquet name some fields otherwise (``writers.OUTPUT_NAMES``).

    Attributes:
        image: its path; empty where it came without one.
        label: the likeliest class; None, as all that follows, where there is an error.
        probability: of that class.
        top: the likeliest classes with their probabilities, the likeliest first.
        prediction_set: classes that include the right one as often as the conformal level says, the likeliest first;
            with the method LAC it may be empty. None where the bundle has no levels.
        ood_distance: of the image's features to those of training images, 0 to 2; None where the bundle has none of
            them.
        ood_level: where the image is out of distribution, the largest fraction (0.95, 0.99) of validation images that
            are all nearer than it; else None.
        error: why there is no prediction.
    """

    image: str = ""
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    prediction_set: list[str] | None = None
    ood_distance: float | None = None
    ood_level: float | None = None
    error: str | None = None

    # The former names of four fields.
    picture = property(lambda self: self.image)
    set = property(lambda self: self.prediction_set)
    distance = property(lambda self: self.ood_distance)
    unusual = property(lambda self: self.ood_level)


class Postprocessor:
    """Turns logits and features into predictions, as ``Predictor`` was asked to."""

    def __init__(self, bundle: Bundle, *, calibrated: bool, level: float | None, method: str | None, top: int) -> None:
        """Read the bundle's calibration; raises UserError where it has no such temperature or level."""
        if calibrated and bundle.config.temperature is None:
            raise UserError(f"{bundle.folder} has no temperature, as its model was not calibrated: omit --calibrated")
        if top < 1:
            raise UserError(f"top must be at least 1, not {top}")
        self._config, self._top = bundle.config, top
        self._temperature = np.float32(bundle.config.temperature if calibrated else 1)
        self._ood_reference = bundle.ood_reference()
        self._level = _choose_level(bundle, level, method)

    def __call__(self, logits: NDArray[np.float32], features: NDArray[np.float32]) -> list[Prediction]:
        """Return a prediction for each row of logits, float32 (n, classes), and features, float32 (n, width)."""
        finite = np.asarray(np.isfinite(np.hstack([logits, features])).all(axis=1))
        logits, features = (np.where(finite[:, None], each, np.float32(0)) for each in (logits, features))
        probabilities = softmax(logits / self._temperature)
        order = np.argsort(-logits, axis=1, kind="stable")
        sets, far = self._prediction_sets(logits, order), [None] * len(logits)
        if self._ood_reference is not None:
            far = distances(features, self._ood_reference).tolist()
        predictions = []
        for i in range(len(logits)):
            if not finite[i]:
                predictions.append(Prediction(error="the model's outputs are no finite numbers"))
                continue
            top = [(self._config.classes[each], float(probabilities[i, each])) for each in order[i, : self._top]]
            predictions.append(Prediction("", *top[0], top, sets[i], far[i], self._ood_level(far[i])))
        return predictions

    def _prediction_sets(self, logits: NDArray[np.float32], order: NDArray[np.int64]) -> list[list[str] | None]:
        """Return each image's set; ``order`` has the classes of each row, the likeliest first, int64 (n, classes)."""
        if self._level is None:
            return [None] * len(logits)
        scores = nonconformity(logits, self._level.method)
        inside = np.take_along_axis(scores <= self._level.threshold, order, axis=1)
        return [[self._config.classes[each] for each in row[kept]] for row, kept in zip(order, inside, strict=True)]

    def _ood_level(self, distance: float | None) -> float | None:
        if distance is None:
            return None
        thresholds = self._config.ood_thresholds or {}
        return max((fraction for fraction, limit in thresholds.items() if distance > limit), default=None)


def _choose_level(bundle: Bundle, level: float | None, method: str | None) -> ConformalLevel | None:
    """Return the first of a bundle's levels that matches; None where it has none and none was asked for."""
    levels = bundle.config.conformal
    for each in levels:
        if level in (None, each.level) and method in (None, each.method):
            return each
    if level is None and method is None:
        return None
    available = ", ".join(f"{each.level:g} by {each.method}" for each in levels) or "none"
    wanted = " by ".join(str(each) for each in (level, method) if each is not None)
    raise UserError(f"{bundle.folder} has no conformal sets of {wanted}: it has {available}")
