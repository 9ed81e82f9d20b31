"""Grades: classes in an order, learned by the logits of being above each of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, by_blocks, row_blocks
from headstart.core.errors import UserError
from headstart.core.json_value import JsonValue
from headstart.core.problems import some
from headstart.core.text import normalize_label
from headstart.targets.arrays import Array, cast, constants, mean_logits, namespace, sigmoid, softplus
from headstart.targets.cells import NUMBER, CellError
from headstart.targets.conformal import LEVELS, checked_entry, covered_by_blocks, entry, threshold
from headstart.targets.named import Named
from headstart.targets.reliability import Reliability
from headstart.targets.target import (
    MAX_RATIO,
    PLAIN,
    Answer,
    Covered,
    Figures,
    LabelError,
    Link,
    LossKind,
    LossOptions,
    Measure,
    Mistake,
    Strata,
    Words,
    mean_loss,
    percentage,
    rounded,
)
from headstart.targets.temperature import best_temperatures, checked_temperature

MOST_GRADES = 50


class GradesReader:
    """Reads one grade of an image; their order is that of ``prepare.grades``, or of the numbers that they are."""

    is_name = True

    def __init__(self, columns: Sequence[str], grades: Sequence[str] | None) -> None:
        self.columns = columns
        self._grades = None if grades is None else [normalize_label(grade) for grade in grades]

    def read(self, cells: Sequence[Any]) -> str:
        """Return the grade; of whole numbers without decimals, which other programs add."""
        (cell,) = cells
        text = "" if cell is None or cell != cell else normalize_label(str(cell))  # noqa: PLR0124  (NaN)
        text = re.sub(r"(?<=\d)\.0+$", "", text)
        if not text:
            raise CellError("no grade", None, "write one, or leave the image out", *self.columns)
        if self._grades is not None and text not in self._grades:
            raise CellError("none of prepare.grades", text, f"these are {some(self._grades)}", *self.columns)
        return text

    def target(self, texts: Iterable[str]) -> "Grades":
        """Return the grades in their order; raises UserError where it is unknown, or a grade has no image."""
        found = set(texts)
        if self._grades is not None:
            if absent := [grade for grade in self._grades if grade not in found]:
                raise UserError(f"prepare.grades: no image has the grade {some(map(repr, absent))}: leave it out")
            return Grades(self._grades)
        if others := sorted(text for text in found if not re.fullmatch(NUMBER, text)):
            raise UserError(
                f"prepare.grades: {some(map(repr, others), 5)} are no numbers, so their order is unknown: name all "
                "grades from the lowest to the highest, as in [none, mild, severe]"
            )
        if len(found) > MOST_GRADES:
            raise UserError(f"prepare.target: {len(found):,} different grades: is it a number? Then set it to number")
        return Grades(sorted(found, key=float))


@dataclass(frozen=True)
class Grades(Named):
    """Ordered classes; ``values`` are int64 (n,), from 0.

    The head computes for each grade but the last the logit of being above it. Its rows of weights are equal, only the
    biases differ: one number orders the images, and thresholds on it separate the grades. The loss is the sum of the
    binary cross-entropies: the all-threshold loss (Rennie and Srebro 2005; Pedregosa et al. 2017), CORAL's (Cao et al.
    2020).
    """

    names: Sequence[str]
    kind: ClassVar[str] = "grade"
    nouns: ClassVar[str] = "grades"
    answer_fields: ClassVar[tuple[str, ...]] = ("label", "probability", "top", "prediction_set")
    agreement_title: ClassVar[str] = "same grade"
    hub_tags: ClassVar[tuple[str, ...]] = ("image-classification", "ordinal-regression")
    losses_known: ClassVar[tuple[LossKind, ...]] = ("auto",)
    tied: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    calibrated_loss: ClassVar[str] = "log_loss"
    link: ClassVar[Link] = "logistic"
    error_figures: ClassVar[tuple[str, ...]] = ("label_probability", "suggested_probability")
    measures: ClassVar[Mapping[str, Measure]] = {
        "kappa": Measure(
            "quadratic kappa",
            higher_is_better=True,
            about="1 less the squared distances in grades over those of chance with the same frequencies; 0 is chance.",
        ),
        "mae": Measure(
            "MAE [grades]", higher_is_better=False, unit="grades", about="the mean distance of the predicted grade."
        ),
        "accuracy": Measure(
            "accuracy", higher_is_better=True, as_percent=True, about="the fraction with exactly their grade."
        ),
        "within_one": Measure(
            "within one grade", higher_is_better=True, as_percent=True, about="the fraction at most one grade off."
        ),
        "macro_f1": Measure("macro F1", higher_is_better=True, about="the mean over the grades that occur of F1."),
        "log_loss": Measure(
            "log loss",
            higher_is_better=False,
            about="the sum over the grades but the last of −log of the probability of being above it, or not, as is "
            "true.",
        ),
    }
    compared: ClassVar[Sequence[str]] = ("kappa", "log_loss")
    scored: ClassVar[str] = "accuracy"
    discrete: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    beside: ClassVar[Sequence[str]] = ()
    suffixes: ClassVar[Mapping[str, Callable[[str], Any]]] = {"": str, "_probability": float}
    words: ClassVar[Words] = Words(
        noun="grade",
        nouns="grades",
        loss="cross-entropy of thresholds",
        short_loss="log loss",
        second="Log loss",
        reached="accuracy",
        instead="Instead of one grade, conformal prediction gives a set of neighbouring grades that contains the "
        "correct one with a promised probability.",
        covered="Contain the correct grade",
        size="Grades in a set, mean",
        methods={
            "OAPS": "begins with the predicted grade and adds the likelier one of its neighbours until the "
            "probabilities sum up to enough. With too few validation images for a promise, every set has all grades."
        },
        breakdown=("Grade by grade", "Grade"),
        parts={"precision": "Precision", "recall": "Recall", "mae": "MAE [grades]"},
        bar="",
        of_probe="mae",
        images=("support", "Test images"),
        notes={
            "Precision": "the fraction of the images predicted as this grade that have it.",
            "Recall": "the fraction of the images of this grade that are predicted as it.",
            "MAE": "their mean distance. A dash: not defined, since the grade was never predicted or has no test "
            "image.",
        },
        worst="worst mistakes",
        gallery="Those furthest off, then those of which the model was most sure.",
        flawless="every test image has exactly its grade",
        temperature="Temperature scaling divides the logits by one number, which changes a model's confidence and "
        "none of its predictions.",
    )

    @property
    def outputs(self) -> int:
        """A logit for each grade but the last."""
        return len(self.names) - 1

    def strata(self, values: NDArray[np.int64]) -> Strata:
        """Return the images of each grade."""
        return Strata(self.names, np.arange(len(values)), values, "grade")

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return the sum of the binary cross-entropies of being above each grade but the last."""
        xp = namespace(outputs)
        if options.shift is not None:
            outputs = outputs + options.shift
        above = self.responses(values, outputs)
        if options.smoothing:
            above = above * (1 - options.smoothing) + options.smoothing / 2
        losses = xp.sum(softplus(outputs) - above * outputs, axis=1)
        return losses if options.weights is None else losses * options.weights[values]

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the loss, its gradient, and p(1 - p) as the state."""
        probabilities = sigmoid(outputs)
        gradient = probabilities - self.responses(values, outputs)
        return self.losses(outputs, values), gradient, probabilities * (1 - probabilities)

    def curvatures(self, state: Array) -> Array:
        """Return p(1 - p)."""
        return state

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return the product with the Hessian, which is diagonal."""
        return state * change

    def responses(self, values: Array, like: Array) -> Array:
        """Return 1 for each grade that a value is above."""
        return cast(cast(values, like)[:, None] > constants([*range(self.outputs)], like), like)

    def log_priors(self, values: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of the fractions above each grade but the last; half an image is added."""
        above = (values[:, None] > np.arange(self.outputs)).sum(axis=0)
        return np.asarray(np.log((above + 0.5) / (len(values) - above + 0.5)), np.float32)

    def fit(self, outputs: Matrix, values: NDArray[np.int64]) -> dict[str, Any]:
        """Fit one temperature for all logits."""
        best = best_temperatures(lambda temperature: np.array([mean_loss(self, outputs, values, temperature)]))
        return {"temperature": float(best[0])}

    def probabilities(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return each grade's calibrated probability, float64 (n, grades)."""
        above = sigmoid(outputs.astype(np.float64) / fitted["temperature"])
        # Whoever is above a grade is above those before it: training might leave the logits out of order.
        falling = np.minimum.accumulate(above, axis=1)
        edges = np.pad(falling, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return np.asarray(edges[:, :-1] - edges[:, 1:])

    def predicted(self, outputs: NDArray[Any]) -> NDArray[np.int64]:
        """Return the median of each image's grades, int64 (n,): how many it is above, more likely than not."""
        return np.asarray((np.minimum.accumulate(outputs, axis=1) > 0).sum(axis=1), np.int64)

    def score(self, outputs: Matrix, values: NDArray[np.int64]) -> float:
        """Return the quadratic kappa, 0 where all images have one grade and are given it."""
        units = np.zeros(len(values), np.int64)
        tally = GradeTally(by_blocks(self.predicted, outputs), values, np.zeros(len(values)), units, len(self.names))
        return float(np.nan_to_num(tally.figures(np.ones((1, 1), np.float32))["kappa"][0]))

    def right(self, outputs: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the median grade is the image's."""
        return np.asarray(self.predicted(outputs) == values)

    def expected(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return the probabilities of being above each grade but the last."""
        return np.asarray(sigmoid(outputs.astype(np.float64) / fitted["temperature"]))

    def residual_quantiles(self, outputs: NDArray[Any], values: NDArray[np.int64]) -> None:
        """Grades have no residuals."""

    def find_errors(self, values: NDArray[np.int64], expected: Iterable[NDArray[Any]]) -> list[LabelError]:
        """Find grades whose probability, with that of those beyond, is at most ``MAX_RATIO`` of its frequency.

        Beyond is on the side away from the suggested grade, the median. The most distant are first; the label's
        probability is that of it and those beyond.
        """
        above = (values[:, None] > np.arange(self.outputs)).mean(axis=0)
        frequencies, begin = np.stack([np.append(1 - above, 1), np.append(1, above)]), 0
        errors: list[tuple[float, float, LabelError]] = []
        for block in expected:
            of_block, rows = values[begin : begin + len(block)], np.arange(len(block))
            falling = np.minimum.accumulate(block, axis=1)
            suggested = (falling > 0.5).sum(axis=1)
            edges = np.pad(falling, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
            too_high = (of_block > suggested).astype(np.int64)
            beyond = np.where(too_high, edges[rows, of_block], 1 - edges[rows, of_block + 1])
            ratios = beyond / np.maximum(frequencies[too_high, of_block], 1e-12)
            for i in np.flatnonzero((ratios <= MAX_RATIO) & (suggested != of_block)).tolist():
                texts = self.names[of_block[i]], self.names[suggested[i]]
                figures = float(beyond[i]), float(edges[i, suggested[i]] - edges[i, suggested[i] + 1])
                error = LabelError(begin + i, *texts, figures)
                errors.append((-abs(float(of_block[i] - suggested[i])), float(ratios[i]), error))
            begin += len(block)
        return [error for *_, error in sorted(errors, key=lambda each: each[:2])]

    def tally(
        self, outputs: Matrix, values: NDArray[np.int64], units: NDArray[np.int64], fitted: Mapping[str, Any]
    ) -> "GradeTally":
        """Return what the figures are computed from."""
        losses = self.refined_losses(outputs, values, fitted)
        return GradeTally(by_blocks(self.predicted, outputs), values, losses, units, len(self.names))

    def scores(
        self,
        outputs: Matrix,
        values: NDArray[np.int64],
        fitted: Mapping[str, Any],  # noqa: ARG002  (a temperature changes no grade)
    ) -> NDArray[np.bool_]:
        """Return whether the grade is the image's."""
        return np.asarray(by_blocks(self.predicted, outputs) == values)

    def refined_losses(
        self, outputs: Matrix, values: NDArray[np.int64], fitted: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """Return the loss after the temperature."""

        def losses(block: NDArray[Any], of_block: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.asarray(self.losses(block.astype(np.float64) / fitted["temperature"], of_block))

        return by_blocks(losses, outputs, values)

    def averaged(self, outputs: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of the mean of the probabilities of being above each grade but the last."""
        return np.asarray(mean_logits(outputs, others), np.float32)

    def _scores(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return each grade's nonconformity score, float64 (n, grades); the sets of any limit are contiguous.

        A set grows from the median grade to the likelier one of its two neighbours; a grade's score is the probability
        of the set before it enters (ordinal adaptive prediction sets, Lu et al. 2022).
        """
        probabilities = self.probabilities(outputs, {"temperature": 1.0})
        n, grades = probabilities.shape
        rows, padded = np.arange(n), np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)
        low = high = self.predicted(outputs)
        scores = np.zeros((n, grades))
        mass = probabilities[rows, low].copy()
        for _ in range(grades - 1):
            upwards = padded[rows, high + 2] > padded[rows, low]
            low, high = low - ~upwards, high + upwards
            entered = np.where(upwards, high, low)
            scores[rows, entered] = mass
            mass += probabilities[rows, entered]
        return scores

    def conformal(self, outputs: Matrix, values: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Fit the thresholds of contiguous sets of grades."""
        own = by_blocks(lambda block, grades: self._scores(block)[np.arange(len(grades)), grades], outputs, values)
        return [entry("OAPS", level, threshold(own, level)) for level in LEVELS]

    def region(self, outputs: NDArray[Any], level: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return which grades are in each image's set, bool (n, grades)."""
        limit = level["threshold"]
        return np.asarray(self._scores(outputs) <= (np.inf if limit is None else limit))

    def covered(self, outputs: Matrix, values: NDArray[np.int64], levels: Sequence[Mapping[str, Any]]) -> list[Covered]:
        """Return whether each level's sets hold the grade, and how many grades they have."""

        def covered(block: NDArray[Any], of_block: NDArray[np.int64], level: Mapping[str, Any]) -> Covered:
            sets = self.region(block, level)
            return Covered(sets[np.arange(len(of_block)), of_block], sets.sum(axis=1))

        return covered_by_blocks(covered, outputs, values, levels)

    def reliability(self, outputs: Matrix, values: NDArray[np.int64], fitted: Mapping[str, Any]) -> dict[str, Any]:
        """Compare the predicted grade's probability with the accuracy, before and after the temperature."""
        found = {}
        for when, temperature in (("before", 1.0), ("after", fitted["temperature"])):
            bins = Reliability()
            for rows in row_blocks(outputs.shape):
                block, grades = outputs[rows], values[rows]
                probabilities = self.probabilities(block, {"temperature": temperature})
                predicted, images = self.predicted(block), np.arange(len(grades))
                losses = -np.log(np.maximum(probabilities[images, grades], 1e-12))
                bins.add(probabilities[images, predicted], predicted == grades, losses)
            found[when] = bins.figures()
        return found

    def shown(self, text: str) -> str:
        """Return the grade."""
        return text

    def cells(
        self,
        outputs: NDArray[Any],
        fitted: Mapping[str, Any],
        level: Mapping[str, Any] | None,  # noqa: ARG002  (the sets are not in the table)
    ) -> list[list[str]]:
        """Return the grades and their calibrated probabilities."""
        answers = self.answers(outputs, fitted, None)
        return [[str(each.value) for each in answers], [f"{each.probability:.6f}" for each in answers]]

    def pairs(self, label: str, said: Sequence[Any]) -> list[tuple[str, str]]:
        """Return the grade and the predicted one."""
        return [(label, said[0])]

    def mistake(self, label: str, said: Sequence[Any]) -> Mistake | None:
        """Return another grade than the image's: the further off, then the more probable, the worse."""
        predicted, probability = said
        distance = abs(self._number[predicted] - self._number[label]) if {predicted, label} <= set(self.names) else 0
        off = f"{distance} grade{'s' if distance > 1 else ''} off, {percentage(probability)}"
        return None if predicted == label else Mistake(distance + probability / 2, label, predicted, off)

    @classmethod
    def checked(cls, names: Sequence[str], spec: JsonValue) -> "Grades":  # noqa: ARG003  (the names say it all)
        """Return the grades of these names."""
        return cls(names)

    def checked_fit(self, entries: JsonValue) -> dict[str, Any] | None:
        """Return a stranger's temperature; None where there is none."""
        temperature = entries.get("temperature")
        return None if temperature is None else {"temperature": checked_temperature(temperature)}

    def checked_level(self, level: JsonValue) -> dict[str, Any]:
        """Return a stranger's level: its threshold is a probability, to rounding."""
        return checked_entry(level, ("OAPS",), -1e-6, 1 + 1e-6)

    def uncalibrated(self, fitted: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002  (others have use for it)
        """Return a temperature of 1."""
        return {"temperature": 1.0}

    def answers(
        self, outputs: NDArray[Any], fitted: Mapping[str, Any], level: Mapping[str, Any] | None, top: int | None = None
    ) -> list[Answer]:
        """Return the median grade with its probability, before the others; the set's grades are in their order."""
        probabilities, grades = self.probabilities(outputs, fitted), self.predicted(outputs).tolist()
        sets = None if level is None else self.region(outputs, level)
        answers = []
        for i, (row, grade) in enumerate(zip(probabilities, grades, strict=True)):
            others = [j for j in np.argsort(-row, kind="stable").tolist() if j != grade]
            parts = [(self.names[j], float(row[j])) for j in [grade, *others][:top]]
            region = (
                None if sets is None else [name for name, inside in zip(self.names, sets[i], strict=True) if inside]
            )
            answers.append(Answer(self.names[grade], float(row[grade]), parts, region))
        return answers

    def prediction(self, answer: Answer) -> dict[str, Any]:
        """Return an answer by the ``answer_fields``."""
        return dict(zip(self.answer_fields, answer, strict=True))

    def agreement(
        self,
        outputs: NDArray[Any],
        others: NDArray[Any],
        values: NDArray[np.int64],  # noqa: ARG002  (others have use for it)
        fitted: Mapping[str, Any],  # noqa: ARG002
    ) -> NDArray[np.float64]:
        """Return 1 where the grade is the same."""
        return np.asarray(self.predicted(outputs) == self.predicted(others), np.float64)

    def nll(self, loss: float) -> float:
        """Return the loss."""
        return loss


class GradeTally:
    """The figures of grades, all of them functions of sums over the images."""

    fractions: ClassVar[Sequence[str]] = ("accuracy", "within_one")
    fixed: ClassVar[Mapping[str, float | None]] = {}

    def __init__(
        self,
        predicted: NDArray[np.int64],
        values: NDArray[np.int64],
        losses: NDArray[np.float64],
        units: NDArray[np.int64],
        grades: int,
    ) -> None:
        """Count by unit the pairs of grade and prediction, and sum the losses; all are (n,)."""
        self._grades, shape = grades, (int(units.max(initial=-1)) + 1, grades**2 + 1)
        self._sums = np.zeros(shape)
        np.add.at(self._sums, (units, values * grades + predicted), 1)
        self._sums[:, -1] = np.bincount(units, losses, minlength=shape[0])

    def _confusion(self, times: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = times[:, : len(self._sums)].astype(np.float64) @ self._sums
        return sums[:, :-1].reshape(-1, self._grades, self._grades), sums[:, -1]

    def figures(self, times: NDArray[np.float32]) -> Figures:
        """Return the figures; kappa is 1 less the squared errors over those of chance with the same frequencies.

        Cohen 1968. ``macro_f1`` is the mean over the grades that occur.
        """
        confusion, losses = self._confusion(times)
        total, hits = confusion.sum(axis=(1, 2)), np.diagonal(confusion, axis1=1, axis2=2)
        actual, said = confusion.sum(axis=2), confusion.sum(axis=1)
        distance = np.abs(np.subtract.outer(np.arange(self._grades), np.arange(self._grades)))
        chance = np.einsum("ti,tj,ij->t", actual, said, distance**2) / total
        f1 = 2 * hits / np.maximum(actual + said, 1e-12)
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = 1 - (confusion * distance**2).sum(axis=(1, 2)) / chance
        return {
            "kappa": kappa,
            "mae": (confusion * distance).sum(axis=(1, 2)) / total,
            "accuracy": hits.sum(axis=1) / total,
            "within_one": (confusion * (distance <= 1)).sum(axis=(1, 2)) / total,
            "macro_f1": np.where(actual > 0, f1, 0).sum(axis=1) / (actual > 0).sum(axis=1),
            "log_loss": losses / total,
        }

    def per_part(self) -> list[dict[str, Any]]:
        """Return each grade's figures on the test set as it is."""
        (confusion,), _ = self._confusion(np.ones((1, len(self._sums)), np.float32))
        actual, said, hits = confusion.sum(axis=1), confusion.sum(axis=0), np.diagonal(confusion)
        errors = (confusion * np.abs(np.subtract.outer(np.arange(self._grades), np.arange(self._grades)))).sum(axis=1)
        return [
            {
                "support": int(actual[i]),
                "precision": rounded(hits[i] / said[i]) if said[i] else None,
                "recall": rounded(hits[i] / actual[i]) if actual[i] else None,
                "mae": rounded(errors[i] / actual[i]) if actual[i] else None,
            }
            for i in range(self._grades)
        ]
