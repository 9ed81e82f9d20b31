"""From what the model gives to what is said of an image: the class, how likely, which others, how unusual."""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.inference.bundle import Bundle
from headstart.inference.bundle_config import BundleConfig, ConformalLevel
from headstart.inference.scores import Method, distances, nonconformity, softmax


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: its path; empty where it came without one.
        label: the likeliest class; None, as all that follows, where there is an error.
        probability: of that class.
        top: the likeliest classes with their probabilities, the likeliest first.
        set: classes among which the right one is as often as the conformal level says; it may be empty by the method
            LAC. None where the bundle has no levels.
        distance: how far the image's features are from those of training images, 0 to 2; None where the bundle
            has none of them.
        unusual: the largest of the bundle's shares (0.95, 0.99) of usual images that are all nearer; None where the
            image is not unusual, or nothing is known.
        error: why there is no prediction.
    """

    image: str = ""
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    set: list[str] | None = None
    distance: float | None = None
    unusual: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Postprocessor:
    """Says what logits and features mean.

    Attributes:
        config: the bundle's.
        reference: features of training images, float32 (m, width), or None.
        temperature: what logits are divided by before they become probabilities.
        level: of the sets, or None.
        top: how many classes are listed.
    """

    config: BundleConfig
    reference: NDArray[np.float32] | None
    temperature: float
    level: ConformalLevel | None
    top: int

    @classmethod
    def of(cls, bundle: Bundle, calibrated: bool, level: float | None, method: str | None, top: int) -> "Postprocessor":  # noqa: FBT001
        """Take what is asked for from a bundle; raises UserError where it has no such thing."""
        temperature = bundle.config.temperature if calibrated else 1.0
        if temperature is None:
            raise UserError(
                f"{bundle.folder} knows no temperature, since its model was not calibrated: leave --calibrated away"
            )
        if top < 1:
            raise UserError(f"top must be at least 1, not {top}")
        return cls(bundle.config, bundle.reference(), temperature, _chosen(bundle, level, method), top)

    def __call__(self, logits: NDArray[np.float32], features: NDArray[np.float32]) -> list[Prediction]:
        """Judge images by their logits, float32 (n, classes), and features, float32 (n, width)."""
        finite = np.asarray(np.isfinite(np.hstack([logits, features])).all(axis=1))
        logits, features = (np.where(finite[:, None], each, np.float32(0)) for each in (logits, features))
        probabilities = softmax(logits / np.float32(self.temperature))
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.top]
        sets = self._sets(logits)
        far = [None] * len(logits) if self.reference is None else distances(features, self.reference).tolist()
        found = []
        for i in range(len(logits)):
            if not finite[i]:
                found.append(Prediction(error="the model's outputs are no finite numbers"))
                continue
            top = [(self.config.classes[each], float(probabilities[i, each])) for each in order[i]]
            found.append(Prediction("", *top[0], top, sets[i], far[i], self._unusual(far[i])))
        return found

    def _sets(self, logits: NDArray[np.float32]) -> list[list[str] | None]:
        """Return each image's set, its likeliest class first."""
        if self.level is None:
            return [None] * len(logits)
        scores = nonconformity(logits, cast("Method", self.level.method))
        order = np.argsort(-logits, axis=1, kind="stable")
        inside = np.take_along_axis(scores <= self.level.threshold, order, axis=1)
        return [[self.config.classes[each] for each in row[held]] for row, held in zip(order, inside, strict=True)]

    def _unusual(self, distance: float | None) -> float | None:
        if distance is None or self.config.unusual is None:
            return None
        return max((share for share, limit in self.config.unusual.items() if distance > limit), default=None)


def _chosen(bundle: Bundle, level: float | None, method: str | None) -> ConformalLevel | None:
    """Choose the first of a bundle's levels that is what was asked for."""
    levels = bundle.config.conformal
    for each in levels:
        if level in (None, each.level) and method in (None, each.method):
            return each
    if level is None and method is None:
        return None
    has = ", ".join(f"{each.level:g} by {each.method}" for each in levels) or "none"
    asked = " by ".join(str(each) for each in (level, method) if each is not None)
    raise UserError(f"{bundle.folder} has no conformal sets of {asked}: it has {has}")
