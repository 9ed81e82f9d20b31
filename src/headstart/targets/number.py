"""Numbers: one or several an image, each with its unit, learned by a squared, Huber or quantile loss."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, by_blocks
from headstart.core.errors import UserError
from headstart.core.json_value import JsonValue
from headstart.targets.arrays import Array, cast, constants, known, namespace
from headstart.targets.cells import LARGEST, CellError, read_number, split_unit
from headstart.targets.conformal import LEVELS, checked_entry, covered_by_blocks, entry, threshold
from headstart.targets.ranking import RankCorrelation
from headstart.targets.target import (
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
    PredictedNumber,
    Strata,
    Words,
    rounded,
)

SEPARATOR = ";"
"""Between several numbers in the table of predictions."""
QUANTILES = (0.05, 0.5, 0.95)
"""What the quantile loss learns: the middle one is the answer, the outer ones its interval."""
DEVIATION = 4.0
"""Spreads of the residuals from which on a number counts as an error: of 2,000 invented ones with normal noise, 46 of
them swapped, 45 were listed and no other where R² was 0.99, 19 of 39 and no other at 0.91, 1 of 43 at 0.51."""
CLOSE = 0.5
"""As a fraction of the model's own root mean squared error: what other outputs say of a number is the same within this.
Where 95 % of normal differences are, they add 3 % to that error."""
BINS = 10
"""Of equal width, of the numbers among which sampling is balanced, from the first to the last percentile."""
STAND_INS = (-99, -999, -9999, 999, 9999, 99999)
"""What tables often have for unknown numbers."""
QUARTERS, DECILES = 4, 10
"""Parts of equally many images: those of the first number, of which every split gets some, and those that are shown."""


logger = logging.getLogger(__name__)


class NumbersReader:
    """Reads one number from each column; a column's name may have the unit, as in ``weight [kg]``."""

    is_name = False

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns

    def read(self, cells: Sequence[Any]) -> str:
        """Return a list of numbers in JSON, null for empty cells."""
        numbers = []
        for column, cell in zip(self.columns, cells, strict=True):
            try:
                numbers.append(read_number(cell))
            except CellError as error:
                raise error.at(column) from None
        if all(number is None for number in numbers):
            raise CellError("no number is known", None, "write one, or leave the image out", *self.columns)
        return json.dumps(numbers if len(numbers) > 1 else numbers[0])

    def target(self, texts: Iterable[str]) -> "Numbers":  # noqa: ARG002  (their values say nothing yet)
        """Return the numbers, not yet standardised."""
        names, units = map(list, zip(*map(split_unit, self.columns), strict=True))
        return Numbers(names, units, [0.0] * len(names), [1.0] * len(names))


@dataclass(frozen=True)
class Numbers:
    """One or several numbers; ``values`` are float32 (n, numbers), NaN if unknown, in their units.

    Inside, numbers are less their ``mean`` and over their ``scale``, the standard deviation, of the training images: so
    is what the head computes, and the loss. With ``quantiles`` the head computes these of each number, one after the
    other.
    """

    names: Sequence[str]
    units: Sequence[str]
    mean: Sequence[float]
    scale: Sequence[float]
    quantiles: Sequence[float] = field(default=())
    kind: ClassVar[str] = "number"
    nouns: ClassVar[str] = "numbers"
    answer_fields: ClassVar[tuple[str, ...]] = ("numbers",)
    agreement_title: ClassVar[str] = f"numbers within {CLOSE:.0%} of the model's RMSE"
    hub_tags: ClassVar[tuple[str, ...]] = ("image-regression",)
    losses_known: ClassVar[tuple[LossKind, ...]] = ("auto", "huber", "quantile")
    tied: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    calibrated_loss: ClassVar[str] = "loss"
    link: ClassVar[Link] = "identity"
    error_figures: ClassVar[tuple[str, ...]] = ("deviation",)

    compared: ClassVar[Sequence[str]] = ("mae", "rmse")
    scored: ClassVar[str] = "mae"
    discrete: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    beside: ClassVar[Sequence[str]] = ()
    suffixes: ClassVar[Mapping[str, Callable[[str], Any]]] = {"": str, "_low": str, "_high": str}
    words: ClassVar[Words] = Words(
        noun="number",
        nouns="numbers",
        loss="loss, standardised",
        short_loss="loss",
        second="RMSE",
        reached="",
        instead="Instead of one number, conformal prediction gives an interval that contains the true one with a "
        "promised probability.",
        covered="Contain the number",
        size="Width, mean",
        methods={
            "split": "takes what is said plus and minus a width, the same for every image, from the errors on "
            "validation. With too few validation images for a promise, every interval is infinite.",
            "CQR": "widens or narrows the interval between the outer quantiles that the model gives, which is wider "
            "for hard images. With too few validation images for a promise, every interval is infinite.",
        },
        breakdown=("Tenth by tenth of the true value", "True value"),
        parts={"mae": "MAE", "rmse": "RMSE", "r2": "R²", "spearman": "Spearman"},
        bar="",
        of_probe="mae",
        images=("known", "Test images"),
        notes={
            "MAE and RMSE": "here in the number's own unit. A dash: not defined, since all test images have the same."
        },
        worst="largest errors",
        gallery="In standard deviations of the training images, if there are several numbers.",
        flawless="every test image has exactly its numbers",
        temperature="",
    )

    @property
    def measures(self) -> Mapping[str, Measure]:
        """Of several numbers, which may differ in their units, errors are in standard deviations."""
        unit = self.units[0] if len(self.names) == 1 else "sd"
        shown, several = unit and f" [{unit}]", len(self.names) > 1
        scale = ", in standard deviations of the training images; the mean over the numbers" if several else ""
        mean = "; the mean over the numbers" if several else ""

        def error(name: str, about: str) -> Measure:
            return Measure(f"{name}{shown}", higher_is_better=False, unit=unit, about=f"{about}{scale}.")

        r2 = f"1 less the squared errors over those of the test images' mean{mean}."
        return {
            "mae": error("MAE", "the mean absolute error"),
            "rmse": error("RMSE", "the root of the mean squared error"),
            "r2": Measure("R²", higher_is_better=True, about=r2),
            "spearman": Measure("Spearman", higher_is_better=True, about=f"the correlation of the ranks{mean}."),
        }

    def measure(self, name: str) -> Measure:
        """Return one of the measures."""
        return self.measures[name]

    def ranked_within(self, top_k: int) -> "Numbers":  # noqa: ARG002  (of classes)
        """Return itself."""
        return self

    @property
    def outputs(self) -> int:
        """A value for each number, or for each of its quantiles."""
        return len(self.names) * max(1, len(self.quantiles))

    def spec(self) -> dict[str, Any]:
        """Return units, mean, scale, and quantiles if there are any."""
        spec = {"units": [*self.units], "mean": [*self.mean], "scale": [*self.scale]}
        return spec | ({"quantiles": [*self.quantiles]} if self.quantiles else {})

    def encode(self, text: str) -> NDArray[np.float32]:
        """Return a row of values from a number in JSON, or a list of them, null for unknown ones."""
        return np.array(json.loads(text), np.float32)

    def values(self, texts: Iterable[str], count: int) -> NDArray[np.float32]:
        """Return the values of images, float32 (n, numbers)."""
        values = np.empty((count, len(self.names)), np.float32)
        for row, text in zip(values, texts, strict=True):
            row[:] = self.encode(text)
        return values

    def strata(self, values: NDArray[np.float32]) -> Strata:
        """Return the quarters of the first number that is known of most images."""
        i = _best_known(values)
        name = f"{self.names[i]} " if len(self.names) > 1 else ""
        quarters = _parts(values[:, i], QUARTERS)
        return quarters._replace(names=[f"{name}{each}" for each in quarters.names], noun="quarter of the numbers")

    def breakdown(self, values: NDArray[np.float32]) -> list[Strata]:
        """Return the tenths of each number."""
        found = []
        for name, column in zip(self.names, values.T, strict=True):
            tenths = _parts(column, DECILES)
            names = [f"{name} {each}" for each in tenths.names] if len(self.names) > 1 else tenths.names
            found.append(tenths._replace(names=names))
        return found

    def trained(self, values: NDArray[np.float32]) -> "Numbers":
        """Return the numbers with mean and scale; raises UserError for one that is constant, or known nowhere."""
        for i, name in enumerate(self.names):
            column = values[:, i][~np.isnan(values[:, i])]
            if not len(column):
                raise UserError(f"prepare: {name} is known of no training image: fill the column, or leave it out")
            if np.ptp(column) == 0:
                raise UserError(f"prepare: {name} is {column[0]:g} in all training images: there is nothing to learn")
            for stand_in in STAND_INS:
                others = column[column != stand_in]
                count, least, most = len(column) - len(others), others.min(), others.max()
                if count > 1 and not least - (most - least) <= stand_in <= most + (most - least):
                    advice = "leave such cells empty if that stands for unknown"
                    logger.warning(
                        "%s is %d in %d training images, far from all others: %s", name, stand_in, count, advice
                    )
        doubles = values.astype(np.float64)
        return replace(self, mean=np.nanmean(doubles, axis=0).tolist(), scale=np.nanstd(doubles, axis=0).tolist())

    def with_loss(self, kind: LossKind) -> "Numbers":
        """Return the numbers with ``QUANTILES``, which the quantile loss learns, or without."""
        return replace(self, quantiles=QUANTILES if kind == "quantile" else ())

    def _standard(self, values: Array, like: Array) -> tuple[Array, Array]:
        """Return the numbers as the head computes them, and 1 where they are known."""
        return known(self.responses(values, like))

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return the sum over an image's known numbers of the squared error, Huber's or, of quantiles, pinball's.

        Huber's is the square up to one standard deviation and the tangent from there on.
        """
        xp = namespace(outputs)
        numbers, is_known = self._standard(values, outputs)
        if self.quantiles:
            by_quantile = xp.reshape(outputs, (outputs.shape[0], len(self.names), len(self.quantiles)))
            levels = constants([*self.quantiles], outputs)
            above = numbers[:, :, None] - by_quantile
            pinball = xp.maximum(levels * above, (levels - 1) * above)
            return xp.sum(xp.sum(pinball, axis=2) * is_known, axis=1)
        errors = outputs - numbers
        square = errors**2
        if options.kind == "huber":
            square = xp.where(xp.abs(errors) <= 1, square, 2 * xp.abs(errors) - 1)
        return xp.sum(square * is_known, axis=1)

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the squared error, its gradient, and its second derivative as the state."""
        numbers, is_known = self._standard(values, outputs)
        return self.losses(outputs, values), 2 * (outputs - numbers) * is_known, 2 * is_known

    def curvatures(self, state: Array) -> Array:
        """Return 2, or 0 of unknown numbers."""
        return state

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return the product with the Hessian, which is diagonal."""
        return state * change

    def responses(self, values: Array, like: Array) -> Array:
        """Return the numbers as the head computes them."""
        mean, scale = (constants([*each], like) for each in (self.mean, self.scale))
        return (cast(values, like) - mean) / scale

    def loss_weights(self, values: NDArray[np.float32]) -> None:
        """Numbers have no classes."""

    def log_priors(self, values: NDArray[np.float32]) -> None:
        """Numbers have no classes."""

    def rarities(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return one over the count of images in the bin of the first number; of unknown ones over theirs."""
        first = values[:, 0].astype(np.float64)
        low, high = np.nanpercentile(first, [1, 99])
        inside = np.nan_to_num((first - low) / max(high - low, 1e-12), nan=-1.0)
        bins = np.where(np.isnan(first), BINS, np.clip((inside * BINS).astype(np.int64), 0, BINS - 1))
        return np.asarray(1 / np.bincount(bins, minlength=BINS + 1)[bins], np.float64)

    def fit(self, outputs: Matrix, values: NDArray[np.float32]) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: what a model says of a number is calibrated by its intervals."""
        return {}

    def points(self, outputs: Matrix) -> NDArray[np.float64]:
        """Return what the model says of each number, in its unit, float64 (n, numbers)."""
        return by_blocks(lambda block: self._in_units(block)[:, :, len(self.quantiles) // 2], outputs)

    def _in_units(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return the outputs in the numbers' units, (n, numbers, quantiles or 1); quantiles never cross."""
        inside = np.sort(outputs.astype(np.float64).reshape(len(outputs), len(self.names), -1), axis=2)
        return np.asarray(inside * np.array(self.scale)[:, None] + np.array(self.mean)[:, None])

    def score(self, outputs: Matrix, values: NDArray[np.float32]) -> float:
        """Return the mean absolute error, of several numbers the mean in standard deviations."""
        errors, is_known = known(np.abs(self.points(outputs) - values))
        divisor = np.array(self.scale) if len(self.names) > 1 else np.ones(1)
        count = is_known.sum(axis=0)
        return float((errors.sum(axis=0) / divisor / np.maximum(count, 1))[count > 0].mean())

    def right(self, outputs: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether the number by which ``strata`` groups is known to one standard deviation."""
        i = _best_known(values)
        images = ~np.isnan(values[:, i])
        return np.asarray(np.abs(self.points(outputs) - values)[images, i] < self.scale[i])

    def expected(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[Any]:  # noqa: ARG002
        """Return the outputs."""
        return outputs

    def residual_quantiles(self, outputs: NDArray[Any], values: NDArray[np.float32]) -> list[list[float]]:
        """Return those of ``QUANTILES``, for outputs without quantiles."""
        residuals = self.responses(values, outputs.astype(np.float64)) - outputs
        of_number = (column[~np.isnan(column)] for column in residuals.T)
        return [np.quantile(each, QUANTILES).tolist() if len(each) else [0.0] * len(QUANTILES) for each in of_number]

    def find_errors(self, values: NDArray[np.float32], expected: Iterable[NDArray[Any]]) -> list[LabelError]:
        """Find numbers whose residual is ``DEVIATION`` times the spread of their residuals.

        The spread is the standard deviation of a normal distribution with the same 95th percentile of the absolute
        residual: errors are fewer than one in twenty, and where most numbers are equal the median is near 0.
        """
        blocks = [np.asarray(block, np.float64) for block in expected]
        outputs = np.concatenate(blocks) if blocks else np.zeros((0, self.outputs))
        residuals, is_known = known(np.abs(self.responses(values, outputs) - outputs))
        errors = []
        for j in range(self.outputs):
            of_number = np.flatnonzero(is_known[:, j])
            spread = max(float(np.quantile(residuals[of_number, j], 0.95)) / 1.96, 1e-6) if len(of_number) else 1.0
            for i in of_number[residuals[of_number, j] >= DEVIATION * spread].tolist():
                both = float(values[i, j]), float(outputs[i, j] * self.scale[j] + self.mean[j])
                label, suggested = (f"{self.names[j]} {each:.6g} {self.units[j]}".strip() for each in both)
                errors.append(LabelError(i, label, suggested, (float(residuals[i, j] / spread),)))
        return sorted(errors, key=lambda error: -error.figures[0])

    def tally(
        self,
        outputs: Matrix,
        values: NDArray[np.float32],
        units: NDArray[np.int64],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> "NumberTally":
        """Return what the figures are computed from."""
        divisor = np.ones(1) if len(self.names) == 1 else np.array(self.scale)
        return NumberTally(self.points(outputs), values.astype(np.float64), units, divisor)

    def scores(
        self,
        outputs: Matrix,
        values: NDArray[np.float32],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> NDArray[np.float64]:
        """Return the absolute error, of several numbers the mean in standard deviations."""
        scale = np.ones(1) if len(self.names) == 1 else np.array(self.scale)
        return np.asarray(np.nanmean(np.abs(self.points(outputs) - values) / scale, axis=1))

    def refined_losses(
        self,
        outputs: Matrix,
        values: NDArray[np.float32],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> NDArray[np.float64]:
        """Return the loss."""

        def losses(block: NDArray[Any], of_block: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.asarray(self.losses(block.astype(np.float64), of_block.astype(np.float64)))

        return by_blocks(losses, outputs, values)

    def averaged(self, outputs: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of the outputs."""
        return np.asarray((outputs + others) / 2, np.float32)

    def _scores(self, outputs: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how far each number is outside what the model says, float64 (n, numbers), NaN if unknown.

        That is the absolute error, or of quantiles the distance to the nearer of the outer ones, negative between them
        (conformalised quantile regression, Romano et al. 2019).
        """
        said = self._in_units(outputs)
        return np.asarray(np.maximum(said[:, :, 0] - values, values - said[:, :, -1]))

    def conformal(self, outputs: Matrix, values: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Fit by how much each number's interval is wider than what the model says; ``threshold`` has one for each."""
        scores = by_blocks(self._scores, outputs, values)
        of_number = [column[~np.isnan(column)] for column in scores.T]
        (method,) = self._methods
        return [entry(method, level, [threshold(each, level) for each in of_number]) for level in LEVELS]

    def region(self, outputs: NDArray[Any], level: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return the interval of each number, float64 (n, numbers, 2), infinite where validation was too small."""
        said = self._in_units(outputs)
        wider = np.array([np.inf if each is None else each for each in level["threshold"]])
        low, high = said[:, :, 0] - wider, said[:, :, -1] + wider
        return np.stack([np.minimum(low, high), np.maximum(low, high)], axis=2)

    def covered(
        self, outputs: Matrix, values: NDArray[np.float32], levels: Sequence[Mapping[str, Any]]
    ) -> list[Covered]:
        """Return whether each known number is within its interval, and the width of this.

        Of several numbers the width is in standard deviations.
        """
        scale = np.array(self.scale) if len(self.names) > 1 else 1

        def covered(block: NDArray[Any], of_block: NDArray[np.float32], level: Mapping[str, Any]) -> Covered:
            low, high = np.moveaxis(self.region(block, level), 2, 0)
            inside = np.where(np.isnan(of_block), np.nan, (of_block >= low) & (of_block <= high))
            return Covered(inside, (high - low) / scale)

        return covered_by_blocks(covered, outputs, values, levels)

    def reliability(
        self,
        outputs: Matrix,
        values: NDArray[np.float32],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> dict[str, Any]:
        """Measure the mean absolute error and the mean error, in the number's unit, in each tenth of each number."""
        errors, rows = self.points(outputs) - values, list[dict[str, Any]]()
        for number, column, tenths in zip(self.names, errors.T, self.breakdown(values), strict=True):
            for i, name in enumerate(tenths.names):
                of_part = column[tenths.images[tenths.groups == i]]
                figures = {"mae": rounded(np.abs(of_part).mean()), "bias": rounded(of_part.mean())}
                rows.append({"class": name, "number": number, "pictures": len(of_part)} | figures)
        return {"parts": rows}

    def shown(self, text: str) -> str:
        """Return the numbers, nothing where one is unknown."""
        numbers = json.loads(text)
        return SEPARATOR.join(_number(each) for each in (numbers if isinstance(numbers, list) else [numbers]))

    def cells(
        self,
        outputs: NDArray[Any],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
        level: Mapping[str, Any] | None,
    ) -> list[list[str]]:
        """Return the numbers and the ends of their intervals, nothing where one is infinite."""
        columns = [self.points(outputs)]
        ends = np.full((len(outputs), len(self.names), 2), np.inf) if level is None else self.region(outputs, level)
        columns += [*np.moveaxis(ends, 2, 0)]
        return [[SEPARATOR.join(map(_number, row)) for row in column.tolist()] for column in columns]

    def pairs(self, label: str, said: Sequence[Any]) -> list[tuple[str, str]]:
        """Return each number, empty where it is unknown, and what was said."""
        return list(zip(label.split(SEPARATOR), said[0].split(SEPARATOR), strict=True))

    def mistake(self, label: str, said: Sequence[Any]) -> Mistake | None:
        """Return by how much the numbers are off; the worst is the furthest off, in standard deviations."""
        off = [
            (float(answer) - float(truth), scale, unit)
            for (truth, answer), scale, unit in zip(self.pairs(label, said), self.scale, self.units, strict=True)
            if truth
        ]
        if not any(error for error, _, _ in off):
            return None
        note = ", ".join(f"{error:+.3g} {unit}".strip() for error, _, unit in off)
        worst = max(abs(error) / scale for error, scale, _ in off)
        answer = ", ".join(f"{float(each):.4g}" for each in said[0].split(SEPARATOR))
        return Mistake(worst, label.replace(SEPARATOR, ", "), answer, f"off by {note}")

    @property
    def _methods(self) -> tuple[str]:
        return ("CQR" if self.quantiles else "split",)

    @classmethod
    def checked(cls, names: Sequence[str], spec: JsonValue) -> "Numbers":
        """Return the numbers with a stranger's units, mean, scale and quantiles, which must rise."""
        units, mean, scale = (spec[key].list(len(names), len(names)) for key in ("units", "mean", "scale"))
        given, quantiles = spec.get("quantiles"), list[float]()
        for each in () if given is None else given.list(3, 99):
            quantiles.append(each.number(quantiles[-1] if quantiles else 0, 1))
            if quantiles[:-1] and quantiles[-1] == quantiles[-2]:
                each.refuse("is there twice")
        return cls(
            names,
            [each.text(100, least=0) for each in units],
            [each.number(-LARGEST, LARGEST) for each in mean],
            [each.number(1 / LARGEST, LARGEST) for each in scale],
            quantiles or (),
        )

    def checked_fit(self, entries: JsonValue) -> dict[str, Any]:  # noqa: ARG002  (others have use for it)
        """Return nothing, as ``fit``."""
        return {}

    def checked_level(self, level: JsonValue) -> dict[str, Any]:
        """Return a stranger's level, with a threshold for each number; those of quantiles may narrow the interval."""
        least = -LARGEST if self.quantiles else 0
        return checked_entry(level, self._methods, least, LARGEST, len(self.names))

    def uncalibrated(self, fitted: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002  (others have use for it)
        """Return nothing, as ``fit``."""
        return {}

    def answers(
        self,
        outputs: NDArray[Any],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
        level: Mapping[str, Any] | None,
        top: int | None = None,  # noqa: ARG002  (none is likelier than another)
    ) -> list[Answer]:
        """Return the numbers, with their intervals; null for an end that is infinite."""
        points = self.points(outputs).tolist()
        regions = [None] * len(points) if level is None else self.region(outputs, level).tolist()
        answers = []
        for point, region in zip(points, regions, strict=True):
            parts = list(zip(self.names, point, strict=True))
            ends = region and [[end if np.isfinite(end) else None for end in interval] for interval in region]
            answers.append(Answer(point[0] if len(point) == 1 else point, None, parts, ends))
        return answers

    def prediction(self, answer: Answer) -> dict[str, Any]:
        """Return an answer by the ``answer_fields``."""
        regions = answer.region or [None] * len(self.names)
        parts = zip(answer.parts, self.units, regions, strict=True)
        return {"numbers": [PredictedNumber(*part, unit, region) for part, unit, region in parts]}

    def agreement(
        self,
        outputs: NDArray[Any],
        others: NDArray[Any],
        values: NDArray[np.float32],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> NDArray[np.float64]:
        """Return the fraction of numbers that differ by at most ``CLOSE`` of the RMSE of ``outputs``.

        A number of which no image's is known is left out.
        """
        points = self.points(outputs)
        errors, is_known = known(points - values)
        count = is_known.sum(axis=0)
        rmse = np.sqrt((errors**2).sum(axis=0) / np.maximum(count, 1))
        return np.asarray((np.abs(points - self.points(others)) <= CLOSE * rmse)[:, count > 0].mean(axis=1))

    def nll(self, loss: float) -> float:
        """Return the logarithm of the error: of the RMSE, or of quantiles of the pinball loss.

        It is the negative log-likelihood of a normal distribution whose variance is the squared error, or of an
        asymmetric Laplace one whose scale is the pinball loss. So its change is the error's relative one.
        """
        return float(np.log(max(loss, np.finfo(np.float64).tiny))) / (1 if self.quantiles else 2)


def _best_known(values: NDArray[np.float32]) -> int:
    """Return the place of the first number that is known of most images."""
    return int((~np.isnan(values)).sum(axis=0).argmax())


def _number(number: float | None) -> str:
    return "" if number is None or not np.isfinite(number) else f"{number:.6g}"


def _parts(numbers: NDArray[np.float32], count: int) -> Strata:
    """Return the images of each of at most ``count`` equally large parts of numbers (n,); NaN is in none."""
    images = np.flatnonzero(~np.isnan(numbers))
    if not len(images):
        return Strata([], images, images)
    ends = np.unique(np.quantile(numbers[images], np.linspace(0, 1, count + 1)))
    groups = np.clip(np.searchsorted(ends, numbers[images], side="right") - 1, 0, max(0, len(ends) - 2))
    shown = [f"{low:g} to {high:g}" for low, high in pairwise(ends)] or [f"{ends[0]:g}"]
    there, groups = np.unique(groups, return_inverse=True)  # between two ends there may be no number
    return Strata([shown[i] for i in there], images, groups)


class NumberTally:
    """The figures of numbers."""

    fractions: ClassVar[Sequence[str]] = ()
    fixed: ClassVar[Mapping[str, float | None]] = {}

    def __init__(
        self,
        points: NDArray[np.float64],
        values: NDArray[np.float64],
        units: NDArray[np.int64],
        divisor: NDArray[np.float64],
    ) -> None:
        """Sum up points and values (n, numbers), the units (n,), and what errors are divided by, (numbers,) or (1,)."""
        numbers, is_known = known(values)
        self._centre = numbers.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)  # squares lose fewer digits around it
        errors, around = (points - numbers) * is_known, (numbers - self._centre) * is_known
        each = np.concatenate([is_known, np.abs(errors), errors**2, around, around**2], axis=1)
        self._sums = np.zeros((int(units.max(initial=-1)) + 1, each.shape[1]))
        np.add.at(self._sums, units, each)
        self._divisor = divisor
        self._ranks = [
            RankCorrelation(points[of_number, i], values[of_number, i], units[of_number])
            for i, of_number in enumerate(is_known.T > 0)
        ]

    def _each(self, times: NDArray[np.float32]) -> Figures:
        """Return the figures of each number, (test sets, numbers), in its unit."""
        sums = times[:, : len(self._sums)].astype(np.float64) @ self._sums
        count, absolute, squares, first, second = np.split(sums, 5, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = second - first**2 / count
            r2 = np.where(spread > 0, 1 - squares / spread, np.nan)
            ranks = np.stack([each.figures(times) for each in self._ranks], axis=1)
            return {"mae": absolute / count, "rmse": np.sqrt(squares / count), "r2": r2, "spearman": ranks}

    def figures(self, times: NDArray[np.float32]) -> Figures:
        """Return the means over the numbers, of errors in standard deviations where there are several."""
        each = self._each(times)
        errors = {name: (each[name] / self._divisor).mean(axis=1) for name in ("mae", "rmse")}
        return errors | {name: each[name].mean(axis=1) for name in ("r2", "spearman")}

    def per_part(self) -> list[dict[str, Any]]:
        """Return each number's figures, in its unit, on the test set as it is."""
        each = self._each(np.ones((1, len(self._sums)), np.float32))
        known_images = self._sums[:, : len(self._ranks)].sum(axis=0)
        return [
            {"known": int(known_images[i])} | {measure: rounded(figure[0, i]) for measure, figure in each.items()}
            for i in range(len(self._ranks))
        ]
